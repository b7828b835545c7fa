# `make run` and `make test` set up everything that they need; the second time they start at once.

# Which Python makes the environment (`make clean` first to change it); by default the first of python3, python3.14 …
# python3.11 that is new enough.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# Passed on: `make run ARGS="--port 9000"`, `make test ARGS="-k resume"`.
ARGS ?=
UV_LOCK := $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock"
LOCKS := requirements.txt requirements-build.txt requirements-dev.txt \
	benchmarks/peers/requirements-web.txt benchmarks/peers/requirements-litellm.txt
# `make lock UPGRADE=--upgrade` moves every pin to the newest version that pyproject.toml allows.
UPGRADE ?=

.DEFAULT_GOAL := help
.PHONY: help run test fmt lint types format-check unit bench lock clean setup setup-dev browser

help: ## this list
	@printf 'Convobase Gateway\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[36mmake %-6s\033[0m %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nARGS are passed on: make run ARGS="--port 9000", make test ARGS="-k resume".\n'

run: setup ## set up if needed, then serve on http://127.0.0.1:8080
	@exec $(BIN)/convobase serve $(ARGS)

test: setup-dev browser format-check lint types unit ## set up if needed, then check everything: format, lint, types, tests

fmt: setup-dev ## format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lint: setup-dev ## ruff's rules
	@echo '==> lint'
	@$(BIN)/ruff check .

types: setup-dev ## mypy, strict
	@echo '==> types'
	@$(BIN)/mypy

bench: setup-dev ## the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

lock: setup-dev ## compile the pinned requirements again (UPGRADE=--upgrade for newer versions)
	@$(BIN)/python -m pip install --quiet uv
	@$(UV_LOCK) $(UPGRADE) pyproject.toml --group dev --group build --output-file requirements-dev.txt
	@$(UV_LOCK) pyproject.toml --constraints requirements-dev.txt --output-file requirements.txt
	@$(UV_LOCK) --group build --constraints requirements-dev.txt --output-file requirements-build.txt
	@$(UV_LOCK) $(UPGRADE) benchmarks/peers/requirements-web.in --constraints requirements-dev.txt \
		--output-file benchmarks/peers/requirements-web.txt
	@$(UV_LOCK) $(UPGRADE) benchmarks/peers/requirements-litellm.in --output-file benchmarks/peers/requirements-litellm.txt
	@if grep -nE '^ *--(index-url|extra-index-url|find-links|trusted-host)|://' $(LOCKS); then \
		echo 'The requirements name a host: see above.' >&2; exit 1; fi
	@echo '$(LOCKS) are compiled; the next make installs them.'

clean: ## remove the environment and everything that was generated
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* dist build
	@find . -name node_modules -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	@echo 'clean'

format-check: setup-dev
	@echo '==> format'
	@$(BIN)/ruff format --check .

unit: setup-dev
	@echo '==> tests'
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --cov --cov-report term $(ARGS)

setup:
	@PYTHON='$(PYTHON)' sh tools/setup-venv.sh $(VENV) run

setup-dev:
	@PYTHON='$(PYTHON)' sh tools/setup-venv.sh $(VENV) dev

browser:
	@sh tests/setup-browser.sh
