"""Times of compiled functions side by side, and the bars that show them."""

import pathlib
import time
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import pyplot as plt

matplotlib.use("agg")

# A large product is not every machine's fastest, and no CPU's to wait for.
_SIDES = (768, 1024, 2048)
_LARGE_SIDE = 8192
# The smallest ratio that is drawn.
_LEAST = 1e-2


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    runs: int,
    best: Container[str] = (),
) -> dict[str, float]:
    """The median seconds of each, called in turns, so that load falls on all alike.

    Of those in `best` the fastest run counts: a roofline is no typical case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {
        name: min(values) if name in best else float(np.median(values))
        for name, values in seconds.items()
    }


def products(dtype: str = "float32") -> dict[str, Callable[[], jax.Array]]:
    """Plain products in a dtype, to be timed among the others as their roofline."""
    multiply = jax.jit(lambda a: jnp.matmul(a, a.mT, precision="highest"))
    sides = _SIDES if jax.default_backend() == "cpu" else (*_SIDES, _LARGE_SIDE)
    squares = {f"product {n}": jnp.ones((n, n), dtype) for n in sides}
    jax.block_until_ready([multiply(x) for x in squares.values()])
    return {name: partial(multiply, x) for name, x in squares.items()}


def roofline(times: Mapping[str, float]) -> float:
    """FLOPs a second of the fastest of `products()`."""
    return max(
        2 * int(name.removeprefix("product ")) ** 3 / seconds
        for name, seconds in times.items()
        if name.startswith("product ")
    )


def machine() -> str:
    """The device that the numbers belong to."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind}), jax {jax.__version__}"


def bars(
    path: pathlib.Path,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    reference: str,
) -> None:
    """Draws ratios as bars on a logarithmic axis, one panel a series."""
    room = 0.08 * max(map(len, names))
    size = (2.6 * len(series) + room, 0.3 * len(names) + 1.2)
    figure, axes = plt.subplots(1, len(series), figsize=size, sharey=True)
    axes = np.atleast_1d(axes)
    axes[0].invert_yaxis()
    for axis, (title, values) in zip(axes, series.items(), strict=True):
        drawn = axis.barh(names, np.maximum(values, _LEAST))
        axis.bar_label(drawn, list(map(_label, values)), padding=2)
        axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        axis.set_xlim(_LEAST, 5 * max(1, *values))
        axis.set_title(title)
    axes[0].margins(y=0.01)
    figure.supxlabel(f"ratio to {reference}", fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _label(ratio: float) -> str:
    return f"< {_LEAST:g}" if 0 < ratio < _LEAST else f"{ratio:.2g}"
