"""What is trained on: one module per source."""

from experiments.data import stdlib

# Name in `task.data` -> () -> corpus with `train`, `validation`, `digest`.
CORPORA = {"stdlib": stdlib.load}
