# `make demo` and `make test` need Python 3.11+ and make, nothing else. Another Python,
# `make test PYTHON=python3.13`, gets a folder of packages beside .venv.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
PY := $(VENV)/bin/python
# pyenv has a command for every Python that it has installed, but runs only those that
# PYENV_VERSION names.
ifneq ($(shell command -v pyenv),)
export PYENV_VERSION := $(shell pyenv version-name):$(shell pyenv versions --bare --skip-aliases | paste -sd:)
endif
# jax 0.12 is for Python 3.12 and newer. Two pairs are tested.
NEWEST := $(shell PYENV_VERSION=$(PYENV_VERSION) $(PYTHON) -c 'import sys; print("newest" if sys.version_info >= (3, 13) else "")')
LOCK := requirements$(if $(NEWEST),-newest).lock
# gpu or tpu: what jax needs for the accelerator that this machine has.
ACCELERATOR ?= $(if $(shell nvidia-smi -L 2>/dev/null),gpu,$(if $(wildcard /dev/accel0 /dev/vfio/0),tpu))
PIP := $(PY) -m pip --quiet --disable-pip-version-check
QUICK := tests/test_layers.py tests/test_conformance.py tests/test_loops.py \
  tests/experiments/test_train.py
# The tests make eight virtual devices of the processor.
test quick docs pictures: export JAX_PLATFORMS ?= cpu

.PHONY: demo test quick lint types format docs pictures lock system-deps clean .venv

demo: .venv
	$(PY) -m experiments.demo --workdir=runs/demo

# Three workers for two cores: many tests wait for runs that they start. Those of a file
# share what they make and compile. xdist would leave files of few tests to the end, and
# these take the longest.
test: lint types
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What a new version of jax or optax breaks first, in minutes.
quick: .venv
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -q $(QUICK) -k "layers or loop_of or pinned or compile_once \
	  or through_cond or checkpoint or lowers or loss_falls"

lint: .venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: .venv
	$(VENV)/bin/basedpyright

format: .venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: .venv
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "site: build/site/index.html"

# The pictures of the documentation and the outputs of the notebooks, which are stored.
pictures: .venv
	$(PY) -m docs.site.pictures
	$(PY) -m jupyter execute --inplace notebooks/*.ipynb

# Made last, so that an install that was cut off starts again, as a changed lock does.
.venv: $(VENV)/installed
$(VENV)/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optlab needs Python 3.11 or newer: make PYTHON=python3.11 VENV=.venv")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r $(LOCK)
	$(PIP) install --no-build-isolation --no-deps --editable .
	$(if $(ACCELERATOR),$(PIP) install --constraint $(LOCK) --no-build-isolation --editable '.[$(ACCELERATOR)]' || echo 'no packages for the $(ACCELERATOR): jax runs on the processor')
	touch $(VENV)/installed

# The newest versions that fit together, of everything that a checkout needs.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet --group dev --editable .
	build/lock/bin/python -m pip freeze --all --exclude-editable >$(LOCK)

# Debian packages that only some tests need; those skip, with the reason, without.
system-deps:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	    slurm-wlm munge postgresql chromium >/dev/null; \
	else echo "make system-deps needs Debian and root; skipped"; fi

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache
