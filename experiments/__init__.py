"""The experiment runner: `python -m experiments.train --help` from the checkout."""

import os

# The LAPACK behind QR and eigh on CPUs waits by spinning, one thread a core: beside
# XLA's own threads, on a machine with other work, a step took ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
