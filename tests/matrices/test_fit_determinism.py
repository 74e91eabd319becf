"""Every host fits the same coefficients, whatever its CPU and threads are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

# The package itself imports JAX, which the fit does not need.
SCRIPT = """
import sys, types
package = types.ModuleType("optlab")
package.__path__ = [sys.argv[1]]
sys.modules["optlab"] = package
from optlab.matrices.coefficients.presets import fit_coefficients, resolve_coefficients
from optlab.matrices.coefficients.fit import mixture

for shape, steps, per_step, normalize in [
    ((37, 91), 5, True, "frobenius"),
    ((900, 300), 3, True, "schatten4"),
    ((700, 700), 3, True, "schatten4"),
    ((11, 11), 5, False, "frobenius"),
    ((3000, 7001), 2, True, "frobenius"),
    ((1, 9), 3, True, "schatten4"),
]:
    fitted = fit_coefficients(shape, steps, per_step=per_step, normalize=normalize)
    spectra = [s.tobytes() for _, s in mixture(min(shape), max(shape), normalize)]
    print(fitted, hash(tuple(s.hex() for s in spectra)))
print([resolve_coefficients(name, 6) for name in ("polar_express", "chebyshev")])
"""


def _kernels() -> list[str]:
    """Names of OpenBLAS' kernels that this CPU can run besides its own."""
    features = np._core._multiarray_umath.__cpu_features__
    wanted = {"Prescott": "SSE3", "Haswell": "AVX2", "SkylakeX": "AVX512_SKX"}
    return [name for name, needed in wanted.items() if features.get(needed)]


def test_blas_kernels_threads_and_cpu_features_change_no_bit():
    # NumPy without its loops for newer CPUs.
    known = np._core._multiarray_umath
    optional = [f for f in known.__cpu_dispatch__ if known.__cpu_features__[f]]
    changed = {
        "OPENBLAS_NUM_THREADS": "2",
        "NPY_DISABLE_CPU_FEATURES": " ".join(optional),
    }
    environments = [{"OPENBLAS_NUM_THREADS": "1"}, changed]
    environments += [{"OPENBLAS_CORETYPE": kernel} for kernel in _kernels()[::2]]
    library = str(Path(__file__).parents[2] / "optlab")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, library],
            env={**os.environ, "PYTHONHASHSEED": "0", **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    outputs = [child.communicate(timeout=1200)[0] for child in children]
    assert not any(child.returncode for child in children)
    assert outputs[0].count("\n") == 7
    for environment, output in zip(environments, outputs, strict=True):
        assert output == outputs[0], environment
