# Two commands are all a user needs, on a fresh machine with Python >= 3.11 and make:
#   make demo    sets up and finds the nuclei of a real image
#   make test    sets up and runs every check
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # one install at a time, and output in order
.PHONY: help demo test quick lint format typecheck unit docs viewer bench soak clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp is newer than pyproject.toml when the environment matches it.
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-dev-docs

PYTEST_WORKERS ?= 2
PYTEST_ARGS ?= -m "not gpu"
DEMO_OUT ?= demo
SECONDS := 1200# not ?=, since bash has a variable of that name; an argument of make goes before it
SEED :=

# The quick half: folders whose tests train no network and start no process, and the tests of the house.
QUICK := $(wildcard tests/decoders tests/geometry tests/heads tests/io tests/losses tests/metrics tests/plugins \
	tests/postprocess tests/slide tests/test_architecture.py tests/test_docs.py tests/test_public_names.py \
	tests/test_registry.py tests/test_types.py)

say = @printf '\n== %s ==\n' "$(1)"

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEV_STAMP) ## Set up, find the nuclei of a real image, write the results to demo/
	$(call say,demo: nuclei of a real image)
	$(BIN)/python -m cellvit.cli.demo --out $(DEMO_OUT)

test: $(DOCS_STAMP) ## Set up and run every check: lint, types, unit tests and doctests, docs
	@$(MAKE) --no-print-directory lint typecheck unit docs
	$(call say,all checks passed)

quick: lint ## Check style and run the quick half of the tests
	$(call say,pytest: quick tests)
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) -m "not gpu and not slow" $(QUICK)

lint: $(DEV_STAMP) ## Check style and formatting
	$(call say,ruff check)
	$(BIN)/ruff check .
	$(call say,ruff format --check)
	$(BIN)/ruff format --check .

format: $(DEV_STAMP) ## Repair style and formatting where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(DEV_STAMP) ## Check the types of the package
	$(call say,mypy --strict)
	$(BIN)/mypy --strict

# One torch thread per worker (tests/conftest.py); the graphics card is left to the tests marked gpu.
unit: $(DEV_STAMP) ## Run the unit tests and the doctests on the CPU
	$(call say,pytest: unit tests and doctests)
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --durations=10 $(PYTEST_ARGS)

# no --quiet: with it --strict lets warnings pass (mkdocs 1.6.1)
docs: $(DOCS_STAMP) ## Build the documentation into build/site
	$(call say,mkdocs build --strict)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml -d ../build/site
	@echo "documentation: build/site/index.html"

viewer: $(BIN)/python ## Fetch the scripts of other projects that `cellvit view` needs, with npm
	$(call say,scripts of the viewer)
	$(BIN)/python cellvit/viewer/vendor.py

bench: $(DEV_STAMP) ## Run every benchmark; each prints JSON
	$(call say,benchmarks)
	@set -e; for file in tests/benchmarks/bench_*.py; do \
		[ -e "$$file" ] || { echo "no benchmarks yet"; break; }; \
		echo "-- $$file" >&2; $(BIN)/python "$$file"; \
	done

soak: $(DEV_STAMP) ## Kill work at random for 20 minutes and compare what it comes to (SECONDS=120 SEED=7)
	$(call say,soak: $(SECONDS) seconds)
	CUDA_VISIBLE_DEVICES= $(BIN)/python tests/soak/soak.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist demo site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(call say,setting up $(VENV) with $(PYTHON))
	@command -v $(PYTHON) >/dev/null || { \
		echo "no $(PYTHON) found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
		f"Python {v.major}.{v.minor} is too old: cellvit needs 3.11 or newer; name one: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make environments; install its venv package (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

# torch and torchvision are resolved together with everything else, so their builds always match.
$(DEV_STAMP): pyproject.toml | $(BIN)/python
	$(call say,installing cellvit and its tools (minutes the first time))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Also satisfies DEV_STAMP: this is a superset, so one install serves both.
$(DOCS_STAMP): pyproject.toml | $(BIN)/python
	$(call say,installing cellvit with its tools and the documentation builder (minutes the first time))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	@touch $(DEV_STAMP) $@
