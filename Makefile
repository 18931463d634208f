# Each target sets up what it needs by itself, on Debian 12, as root or with sudo.
# What is built is cached in ${XDG_CACHE_HOME:-~/.cache}/mvas: see docs/BUILD.md.

RELEASE := target/release

# What `make install` installs, and where.
PROGRAMS := mvasvm mvas-exp
PREFIX ?= /usr/local
BIN = $(DESTDIR)$(PREFIX)/bin
SHARE = $(DESTDIR)$(PREFIX)/share
MAN = $(SHARE)/man/man1
BASH = $(SHARE)/bash-completion/completions
FISH = $(SHARE)/fish/vendor_completions.d
ZSH = $(SHARE)/zsh/site-functions

.DEFAULT_GOAL := help
.PHONY: help demo experiments report-quick publish look test test-all test-debug fuzz chaos kernel kernel-debug image image-containers image-programs binaries setup install uninstall clean

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t16

demo: image image-containers ## Dump and restore a loaded Redis, copies of it, and one in Docker
	@$(RELEASE)/mvas-exp demo

experiments: image-containers image-programs ## Run all experiments in full, and make the report
	@$(RELEASE)/mvas-exp run all
	@$(RELEASE)/mvas-exp report

report-quick: image-containers image-programs ## Run all experiments with few values, and make the report
	@$(RELEASE)/mvas-exp run all --quick --out target/mvas/quick/samples
	@$(RELEASE)/mvas-exp report --from target/mvas/quick/samples --out target/mvas/quick/report

publish: binaries ## Put the last run's report and samples into docs/report
	@$(RELEASE)/mvas-exp report --publish docs/report

look: ## Look at the report in a browser: figures are there, texts can be read
	@images/setup look
	@experiments/look

test: setup ## Run all tests
	@images/test

test-all: setup ## Run all tests, those too that take long
	@images/test all

test-debug: setup ## Run the tests of the kernel and vascriu with KASAN and lockdep
	@images/test debug

fuzz: setup ## Fuzz what reads a guest's bytes, for FUZZ_SECONDS (600) in all
	@fuzz/run $(or $(FUZZ_SECONDS),600)

chaos: setup ## Kill and stop whatever there is, for CHAOS_SECONDS (600); MVAS_SEED repeats it
	@images/test chaos

kernel: binaries ## Build the guest kernel and its self-tests
	@$(RELEASE)/mvas-images kernel

kernel-debug: binaries ## Build the guest kernel with KASAN, lockdep and DEBUG_VM
	@$(RELEASE)/mvas-images kernel --debug

image: binaries ## Build the guest kernel and the guest image
	@$(RELEASE)/mvas-images all

image-containers: image ## Build the guest image that has container engines, too
	@$(RELEASE)/mvas-images image --flavor containers

image-programs: image ## Build the guest image that has programs for experiments, too
	@$(RELEASE)/mvas-images image --flavor programs

binaries: setup ## Build our programs
	@cargo build --release --locked --workspace

setup: ## Install the Debian packages that are missing
	@images/setup

install: ## Install what `make binaries` has built, below PREFIX (/usr/local)
	@install -D -t $(BIN) $(PROGRAMS:%=$(RELEASE)/%)
	@install -d $(MAN) $(BASH) $(FISH) $(ZSH)
	@umask 022; set -e; for program in $(PROGRAMS); do \
		$(BIN)/$$program man $(MAN); \
		$(BIN)/$$program completions bash >$(BASH)/$$program; \
		$(BIN)/$$program completions fish >$(FISH)/$$program.fish; \
		$(BIN)/$$program completions zsh >$(ZSH)/_$$program; \
	done

uninstall: ## Remove what `make install` has installed
	@rm -f $(PROGRAMS:%=$(BIN)/%) $(PROGRAMS:%=$(BASH)/%) $(PROGRAMS:%=$(FISH)/%.fish) \
		$(PROGRAMS:%=$(ZSH)/_%)
	@for program in $(PROGRAMS) vascriu; do rm -f $(MAN)/$$program.1 $(MAN)/$$program-*.1; done

clean: ## Remove what was built here and, from the cache, what nothing needs
	@if [ -x $(RELEASE)/mvas-images ]; then $(RELEASE)/mvas-images gc; fi
	@cargo clean
