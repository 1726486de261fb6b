# `make demo` and `make test` work from a bare checkout: they make the virtual environment and install.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip, ssl; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& { command -v $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 60
JOBS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow quality lint fuzz speed wheel clean

demo: $(INSTALLED)
	$(BIN)/privbench run experiment=quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

quality: $(INSTALLED)
	$(BIN)/python -m pytest -m "golden and not slow" tests/leakage tests/speed/test_inversion.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/attestation.py -max_total_time=$(FUZZ_SECONDS) $(CORPUS)

speed: $(INSTALLED)
	$(BIN)/python -m privbench.benchmarks.speed.federation

wheel: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build --wheel

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "privbench needs Python 3.11, 3.12 or 3.13 (set PYTHON=/path/to/python)"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		"$(PYTHON)" -m venv $(VENV) && $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
