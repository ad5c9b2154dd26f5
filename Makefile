# Outrigger: every task has a name here; `make help` lists them.
# Needs: Debian 12 (or alike), root for the lab's mounts and loop devices, and Rust with cargo.

SHELL     := /bin/bash
CARGO     ?= cargo
OUTRIGGER := target/release/outrigger
KUBECTL   ?= kubectl
export OUTRIGGER_LAB_DIR ?= $(if $(filter 0,$(shell id -u)),/var/lib/outrigger/lab,$(HOME)/.local/state/outrigger/lab)

.DEFAULT_GOAL := help
.PHONY: help up down reset build test test-quick lint generate bench tools-run tools-test

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

up: tools-run build ## Install what is missing, build, start the lab, turn claims into volumes, connect two containers, and show it.
	@scripts/up.sh

down: ## Stop the lab: no process, mount or loop device stays behind; the data stays.
	@$(OUTRIGGER) lab down

reset: ## Stop the lab and delete everything it stored.
	@$(OUTRIGGER) lab reset --yes

build: ## Build the outrigger command for use (release profile), and target/cni, a complete /opt/cni/bin.
	@echo "==> building $(OUTRIGGER) (the first time takes some minutes)"
	@$(CARGO) build --release --locked -p outrigger
	@echo "==> building the CNI plugins into target/cni"
	@scripts/build-cni.sh $(CURDIR)/target/cni

test: tools-test ## Install what the tests need and run all of them; fails if anything is left behind.
	@scripts/test.sh

test-quick: ## The tests that need no root, no kernel resources and no foreign clients.
	$(CARGO) nextest run --locked --workspace --exclude outrigger-tests

lint: ## Formatting, clippy with warnings denied, generated code up to date, dependency rules.
	@scripts/lint.sh

generate: ## Regenerate the committed bindings and data files.
	$(CARGO) run --locked -p xtask -- generate
	OUTRIGGER_UPDATE=1 $(CARGO) nextest run --locked -p outrigger reference
	OUTRIGGER_UPDATE=1 $(CARGO) nextest run --locked -p outrigger-cni --test docs

bench: ## Measure what SPECIFICATION.md promises (set PEERS=... to compare with the Go programs).
	@scripts/bench.sh

tools-run:
	@scripts/tools.sh run

tools-test:
	@scripts/tools.sh test
