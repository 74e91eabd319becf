"""The cost model's table: an optimizer step on 1 to 4096 chips, from shapes alone.

docs/scaling.md has the assumptions and what the table says.
"""

import functools
import math
import pathlib

import jax
from absl import flags

from experiments.benchmark import table
from experiments.benchmark.catalogue import ROLES, llama_shapes
from experiments.benchmark.cost_model import CHIPS, Chip, Cost, seconds, step_cost

FLAGS = flags.FlagValues()
_SIZES = flags.DEFINE_list(
    "sizes", ["350M", "1B"], "cost: LLaMA sizes", flag_values=FLAGS
)
_METHODS = ("adamw", "optax_muon", "muon", "cosmos", "lanton", "root", "soap")
_DEVICES = (1, 8, 64, 128, 256, 512, 1024, 4096)
# A step of 4 M tokens whose forward and backward pass reach 40% of the peak.
_TOKENS, _REACHED = 2**22, 0.4
_PEER = "optax_muon"
COLUMNS = (
    "model",
    "optimizer",
    "devices",
    "GFLOPs",
    "most expensive step, GFLOPs",
    "MB moved",
    "MB of state",
    *(f"ms, {name}" for name in CHIPS),
    *(f"/ {_PEER}, {name}" for name in CHIPS),
    "most expensive step, ms, H100",
    "of a training step, H100",
)


@functools.cache
def costs(model: str, method: str, devices: int, platform: str, usual: bool) -> Cost:
    """Of a step of a LLaMA, as it is lowered for a platform."""
    return step_cost(
        *(method, llama_shapes(model), devices),
        usual=usual,
        platform=platform,
        roles=ROLES,
        weight_decay=0.1,
    )


def row(model: str, method: str, devices: int) -> tuple[str, ...]:
    """One line of the table."""

    def milliseconds(name: str, chip: Chip, usual: bool = True) -> float:
        cost = costs(model, name, devices, chip.platform, usual)
        parts = seconds(cost, chip, devices)
        return math.nan if parts is None else 1e3 * sum(parts.values())

    usual, most = (costs(model, method, devices, "cuda", u) for u in (True, False))
    h100 = CHIPS["H100"]
    times = [milliseconds(method, chip) for chip in CHIPS.values()]
    peers = [milliseconds(_PEER, chip) for chip in CHIPS.values()]
    sizes = (math.prod(p.shape) for p in jax.tree.leaves(llama_shapes(model)))
    training = 6e3 * sum(sizes) * _TOKENS / devices / h100.rates["bfloat16"] / _REACHED
    return (
        model,
        method,
        str(devices),
        *(f"{(c.multiplied + c.factorizations) / 1e9:.1f}" for c in (usual, most)),
        f"{usual.moved / 1e6:.1f}",
        f"{usual.state / 1e6:.1f}",
        *map(_cell, times),
        *(_cell(own / peer, ".2f") for own, peer in zip(times, peers, strict=True)),
        _cell(milliseconds(method, h100, usual=False)),
        f"{times[0] / (times[0] + training):.1%}",
    )


def _cell(number: float, digits: str = ".3g") -> str:
    return "—" if math.isnan(number) else format(number, digits)


def run(out: pathlib.Path) -> int:
    """Writes cost.csv and cost.md into `out`, and prints the table."""
    rows = [
        row(model, method, devices)
        for model in _SIZES.value
        for method in _METHODS
        for devices in _DEVICES
    ]
    heading = (
        "Made by `python -m experiments.benchmark --suite=cost`: one optimizer step of "
        "a LLaMA, float32, products\nas methods choose them by default, by the model "
        "in docs/scaling.md, from shapes and peaks alone. Per device."
    )
    table.write(out / "cost", heading, COLUMNS, rows)
    return 0
