"""Eight virtual devices, strict shapes, warnings as errors: set before jax starts."""

import gc
import importlib.metadata
import os
import pathlib
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is the compiler's, and what it makes runs only a few times.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# XLA's fusion emitters take two thirds of that time. Newer versions abort without.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# LAPACK's own threads spin on each other when cores are shared: eigh of small matrices
# then takes seconds instead of milliseconds.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# XLA's thread pool. Each collective of each virtual device blocks a thread, and with no
# more threads than devices, independent collectives deadlock.
os.environ.setdefault("NPROC", "64")
# Many tests, and the runs that they start, compile the same programs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

# As the runner does: tracing makes millions of objects that live on.
gc.set_threshold(10_000)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Runs that tests start must hear a hangup, also where nohup started the tests.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Lets go of a file's compiled programs: all of them take 5 GB a worker."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Runs one test in float64."""
    with jax.enable_x64(True):
        yield
