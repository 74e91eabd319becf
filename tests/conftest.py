"""Eight virtual devices, strict shapes, warnings as errors: set before jax starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# LAPACK's own threads spin on each other when cores are shared: eigh of small matrices
# then takes seconds instead of milliseconds.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# XLA's thread pool. Each collective of each virtual device blocks a thread, and with no
# more threads than devices, independent collectives deadlock.
os.environ.setdefault("NPROC", "64")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield
