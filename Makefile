# Needs a POSIX shell and Python >= 3.11; everything else comes from requirements.lock into .venv.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)

.PHONY: demo test check lock clean

demo: $(VENV)/.ready  ## train the language model on real text, evaluate it, sample from it
	$(BIN)/assay run experiments/lm_code.gin
	$(BIN)/assay evaluate latest
	$(BIN)/assay sample latest --prompt "def " --prompt "import "
	$(BIN)/assay runs

test: $(VENV)/.ready  ## the whole test suite
	$(BIN)/python -m pytest -m "slow or not slow" -n 2 --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.ready  ## ruff, mypy and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Assay needs Python 3.11 or 3.12, and found neither; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

lock:  ## resolve the dependencies again, for Python 3.11 and 3.12
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file requirements.lock

clean:
	rm -rf $(VENV)
