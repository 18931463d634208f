# Everything below sets up what it needs by itself, on Debian 12, as root or with
# sudo. What is built is cached in ${XDG_CACHE_HOME:-~/.cache}/mvas: docs/BUILD.md.

CARGO_RUN = cargo run --quiet --release --locked
IMAGES = $(CARGO_RUN) -p mvas-images --

.DEFAULT_GOAL := help
.PHONY: help setup kernel kernel-debug image test

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t16

setup: ## Install the Debian packages that are missing
	@images/setup

kernel: setup ## Build the guest kernel and its self-tests, or take them from the cache
	@$(IMAGES) kernel

kernel-debug: setup ## The same with KASAN, lockdep and DEBUG_VM
	@$(IMAGES) kernel --debug

image: setup ## Build the guest image, or take it from the cache
	@$(IMAGES) image

test: setup ## Run all tests
	cargo test --locked --workspace
