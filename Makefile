# Needs a POSIX shell and Python >= 3.11; everything else comes from requirements.lock into .venv.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PARITY := .venv-parity
SASS := .venv-sass
# On Linux the index's torch is a CUDA build of gigabytes; let pip find PyTorch's CPU build (PIP_EXTRA_INDEX_URL) to do without.
# So torch is not in the lock: which file is right, and its hash, depends on the machine.
PARITY_TORCH ?= torch==2.13.0
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)

.PHONY: demo test check parity sass lock clean

demo: $(VENV)/.ready  ## train the language model on real text, evaluate it, sample from it, export it
	$(BIN)/assay run experiments/lm_code.gin
	$(BIN)/assay evaluate latest
	$(BIN)/assay sample latest --prompt "def " --prompt "import "
	$(BIN)/assay export latest --to stablehlo,onnx
	$(BIN)/assay artifact verify latest
	$(BIN)/assay predict latest --text "def "
	$(BIN)/assay runs

test: $(VENV)/.ready  ## the whole test suite
	$(BIN)/python -m pytest -m "slow or not slow" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/.ready  ## ruff, mypy and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: $(VENV)/.ready $(PARITY)/.ready  ## imported and exported models against the transformers library, which has an environment of its own
	rm -rf $(PARITY)/cases
	$(PARITY)/bin/python tests/parity/make_cases.py $(PARITY)/cases
	ASSAY_PARITY_CASES=$(abspath $(PARITY)/cases) ASSAY_PARITY_PYTHON=$(abspath $(PARITY)/bin/python) $(BIN)/python -m pytest -n 0 tests/parity $(PYTEST_ARGS)

sass: $(SASS)/.ready  ## kernels compiled for an H200, without one
	JAX_PLATFORMS=cpu PYTHONPATH=kernels $(SASS)/bin/python -m pytest --noconftest -n 2 tests/kernels/sass $(PYTEST_ARGS)

$(VENV)/.ready: requirements.lock export/jax2onnx.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Assay needs Python 3.11 or 3.12, and found neither; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes --requirements export/jax2onnx.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

$(PARITY)/.ready: tests/parity/requirements.lock | $(VENV)/.ready
	$(PYTHON) -m venv $(PARITY)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(PARITY)/bin/python --require-hashes --requirements tests/parity/requirements.lock
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check $(PARITY_TORCH)
	touch $@

$(SASS)/.ready: tests/kernels/sass/requirements.lock | $(VENV)/.ready
	$(PYTHON) -m venv $(SASS)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(SASS)/bin/python --require-hashes --requirements tests/kernels/sass/requirements.lock
	touch $@

lock:  ## resolve the dependencies again, for Python 3.11 and 3.12
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file requirements.lock
	$(BIN)/uv pip compile tests/parity/requirements.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file tests/parity/requirements.lock
	$(BIN)/uv pip compile tests/kernels/sass/requirements.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file tests/kernels/sass/requirements.lock
	echo 'jax2onnx==0.17.1' | $(BIN)/uv pip compile - --no-deps --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --output-file export/jax2onnx.lock

clean:
	rm -rf $(VENV) $(PARITY) $(SASS)
