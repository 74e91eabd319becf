"""Ways to orthogonalize beside optax's Muon: FLOPs, time and what error they leave."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from optax.contrib import _muon

from experiments.benchmark import peers, table, timing
from experiments.flops import count_flops
from optlab.matrices import quantiles
from optlab.matrices.coefficients.presets import MUON, fit_coefficients, mixture_error
from optlab.matrices.orthogonalize import orthogonalize

FLAGS = flags.FlagValues()
_WIDTH = flags.DEFINE_integer(
    "width", 768, "orthogonalize: side of the square matrices", flag_values=FLAGS
)
_HIDDEN = flags.DEFINE_integer(
    "hidden", 2048, "orthogonalize: longer side of the others", flag_values=FLAGS
)
_TURNS = flags.DEFINE_integer(
    "turns",
    5,
    "orthogonalize: runs in turns, of which the median counts",
    flag_values=FLAGS,
)

COLUMNS = (
    "shape",
    "method",
    "GFLOPs",
    "/ optax main",
    "time, ms",
    "/ optax main",
    "roofline share",
    "mean squared error",
    "/ optax main",
)
_OPTAX = "optax, 5 steps"
_MAIN = "optax main, 5 steps"


def methods(shape: tuple[int, int]):
    """Name -> function of a matrix, and the error of its polynomial."""
    errors = {_OPTAX: mixture_error(MUON, shape)}

    def optax_muon(x):
        return _muon.orthogonalize_via_newton_schulz(x, jnp.asarray(MUON), ns_steps=5)

    def optax_main(x):
        with peers.rolled_loops():
            return optax_muon(x)

    functions = {_OPTAX: optax_muon, _MAIN: optax_main}
    errors[_MAIN] = errors[_OPTAX]
    for method in ("plain", "gram"):
        name = f"{method}, Muon's coefficients, 5 steps"
        functions[name] = partial(orthogonalize, method=method)
        errors[name] = errors[_OPTAX]
    for steps in (4, 5):
        name = f"auto, fitted, Schatten-4, {steps} steps"
        coeffs = fit_coefficients(shape, steps, per_step=True, normalize="schatten4")
        functions[name] = partial(
            orthogonalize, steps=steps, coeffs=coeffs, normalize="schatten4"
        )
        errors[name] = mixture_error(coeffs, shape, steps, "schatten4")
    if jax.default_backend() != "cpu":
        five = "auto, fitted, Schatten-4, 5 steps"
        for dtype in ("bfloat16", "float16"):
            name = f"auto, fitted, Schatten-4, 5 steps, {dtype}"
            functions[name] = partial(functions[five], dtype=dtype)
            errors[name] = errors[five]
    functions["ROOT's threshold"] = _threshold
    errors["ROOT's threshold"] = float("nan")
    return functions, errors


def _threshold(x: jax.Array) -> jax.Array:
    return quantiles.quantile(jnp.abs(x), 0.9)


def run(out: pathlib.Path) -> int:
    """Writes orthogonalize.csv, orthogonalize.md and orthogonalize.png into `out`."""
    m, n = _WIDTH.value, _HIDDEN.value
    rng = np.random.default_rng(0)
    rows, names, flops_ratios, time_ratios = [], [], [], []
    products = timing.products()
    for shape in ((m, m), (m, n), (n, m)):
        functions, errors = methods(shape)
        x = jnp.asarray(rng.standard_normal(shape, np.float32))
        calls = {name: partial(jax.jit(f), x) for name, f in functions.items()}
        for call in calls.values():
            jax.block_until_ready(call())
        times = timing.interleaved(calls | products, _TURNS.value, best=products)
        rate = timing.roofline(times)
        counts = {name: count_flops(f, x).total for name, f in functions.items()}
        for name in functions:
            ratios = [v[name] / v[_MAIN] for v in (counts, times, errors)]
            rows.append(
                (
                    f"{shape[0]} x {shape[1]}",
                    name,
                    f"{counts[name] / 1e9:.2f}",
                    f"{ratios[0]:.3f}",
                    f"{1e3 * times[name]:.1f}",
                    f"{ratios[1]:.2f}",
                    f"{counts[name] / times[name] / rate:.2f}",
                    f"{errors[name]:.2g}",
                    f"{ratios[2]:.2g}",
                )
            )
            names.append(f"{shape[0]} x {shape[1]}: {name}")
            flops_ratios.append(ratios[0])
            time_ratios.append(ratios[1])
    command = (
        f"python -m experiments.benchmark --suite=orthogonalize --width={m} "
        f"--hidden={n} --turns={_TURNS.value}"
    )
    heading = (
        f"Made by `{command}` on {timing.machine()}.\n"
        "The error is that of the singular values on the spectra of "
        "`optlab.fit_coefficients`; the roofline is the\nfastest plain float32 product "
        "in the same turns."
    )
    table.write(out / "orthogonalize", heading, COLUMNS, rows)
    timing.bars(
        out / "orthogonalize.png",
        names,
        {"FLOPs": flops_ratios, "time": time_ratios},
        "the Muon of optax's main branch",
    )
    return 0
