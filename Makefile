# Each target sets up what it needs by itself, on Debian 12, as root or with sudo.
# What is built is cached in ${XDG_CACHE_HOME:-~/.cache}/mvas: see docs/BUILD.md.

RELEASE := target/release

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-debug kernel kernel-debug image binaries setup clean

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t16

demo: image ## Dump and restore a loaded Redis, by stock CRIU and by vascriu, in two microVMs
	@$(RELEASE)/mvas-exp demo

bench: image ## Measure stock CRIU against vascriu over sizes of memory, and the store
	@$(RELEASE)/mvas-exp bench

test: setup ## Run all tests
	@images/test

test-debug: setup ## Run the tests of the kernel and vascriu with KASAN and lockdep
	@images/test debug

kernel: binaries ## Build the guest kernel and its self-tests
	@$(RELEASE)/mvas-images kernel

kernel-debug: binaries ## Build the guest kernel with KASAN, lockdep and DEBUG_VM
	@$(RELEASE)/mvas-images kernel --debug

image: binaries ## Build the guest kernel and the guest image
	@$(RELEASE)/mvas-images all

binaries: setup ## Build our programs
	@cargo build --release --locked --workspace

setup: ## Install the Debian packages that are missing
	@images/setup

clean: ## Remove what was built here and, from the cache, what nothing needs
	@if [ -x $(RELEASE)/mvas-images ]; then $(RELEASE)/mvas-images gc; fi
	@cargo clean
