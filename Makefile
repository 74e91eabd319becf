# `make demo` and `make test` need Python 3.11+ and make, nothing else.
PYTHON ?= python3
PY := .venv/bin/python
export JAX_PLATFORMS ?= cpu

.PHONY: demo test lint types format system-deps clean .venv

demo: .venv
	$(PY) -m experiments.demo --workdir=runs/demo

test: lint types
	$(PY) -m pytest -n 2 --dist loadgroup

lint: .venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: .venv
	.venv/bin/basedpyright

format: .venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Made last, so that an install that was cut off starts again, as a changed lock does.
.venv: .venv/installed
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optlab needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch .venv/installed

# Debian packages that only some tests need; those skip, with the reason, without.
system-deps:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	    slurm-wlm munge postgresql chromium >/dev/null; \
	else echo "make system-deps needs Debian and root; skipped"; fi

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
