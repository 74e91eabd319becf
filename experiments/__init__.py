"""The experiment runner: `python -m experiments.train --help` from the checkout."""
