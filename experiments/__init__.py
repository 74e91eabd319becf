"""The experiment runner: `python -m experiments.train --help` from the checkout."""

import gc
import os

# The LAPACK behind QR and eigh on CPUs waits by spinning, one thread a core: beside
# XLA's own threads, on a machine with other work, a step took ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Imports and tracing make millions of objects that live on: looking for garbage after
# each 700 of them takes a tenth of the time to the first step.
gc.set_threshold(10_000)
