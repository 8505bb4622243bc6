# One target per intention. `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= a red ball bounces on the grass
BIN    := $(VENV)/bin
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help video test check bench format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# The stamp is newer than the files that decide what is installed, so an installation happens once.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Carrara needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment here; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	@touch $@

video: $(VENV)/.installed ## PROMPT="..." -> out/<prompt>.mp4 and a picture of its frames
	@PROMPT='$(subst ','\'',$(value PROMPT))'; $(BIN)/carrara generate --sheet --overwrite -- "$$PROMPT"

test: $(VENV)/.installed-dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/.installed-dev ## formatting, lint, types and the import table
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(VENV)/.installed-dev ## speed and memory, as ratios within one run
	$(BIN)/python -m benchmarks

format: $(VENV)/.installed-dev ## format and sort in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was made, keep the environment
	rm -rf out runs .pytest_cache .mypy_cache .ruff_cache
