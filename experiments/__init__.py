"""The experiment runner: `python -m experiments.train --help` from the checkout."""

import os

# The LAPACK behind QR and eigh on CPUs waits by spinning, one thread a core: beside
# XLA's own threads, on a machine with other work, a step took ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Factorizations of a batch (SOAP's) wait inside XLA's thread pool for threads of it,
# and with two cores and as many threads they do so for good (jaxlib 0.10.2).
os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, 16)))
