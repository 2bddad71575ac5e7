# `make demo` and `make test` need Python 3.11+, make and a package registry; they set up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
ARGS ?=
# pytest rewrites its plugins, hypothesis among them, in each process that may not keep the result.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench gpu docs clean

help: ## Say what there is to make.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

define venv
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "oneway needs Python 3.11 or newer; run `make PYTHON=python3.11 ...`")'
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
endef

setup: $(READY) ## Make .venv with oneway, its extras and the developers' tools (3.0 GB).

$(READY): pyproject.toml constraints.txt
	$(venv)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --group docs --editable ".[art,demo,audit,export,grpc,http,mlflow,onnx,otel,playground,ray,records,serve,sklearn]"
	touch $@

# The demo needs less than half of that.
$(DEMO): pyproject.toml constraints.txt
	$(venv)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

demo: $(or $(wildcard $(READY)),$(DEMO)) ## Invert a classifier's scores, defend them, and show what still leaks (installs 1.4 GB at first).
	$(BIN)/oneway demo $(ARGS)

# ARGS come last: "-n 8" takes more workers, "-n 0" none.
test: $(READY) ## Run the tests, in three workers: on two cores one of them often waits for a process.
	$(BIN)/python -m pytest -n 3 --dist loadgroup $(ARGS)

check: $(READY) ## Format, lint, types, and who may import whom.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Time the defense beside a plain rendering of the paper's listing.
	$(BIN)/python benchmarks/adversarial_noise.py $(ARGS)

gpu: $(READY) ## Test and time on a GPU, for at most eight minutes; MNIST in DATA_ROOT.
	benchmarks/gpu.sh

docs: $(READY) ## Build the documentation site, strictly, into build/docs.
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/docs
	@echo "open build/docs/index.html"

clean: ## Remove .venv and what the tools left.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
