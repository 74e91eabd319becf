"""Measurements of the optimizers, a suite a module; see `python -m ... --help`."""
