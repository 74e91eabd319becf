"""The cost model's table: an optimizer step on 1 to 4096 chips, from shapes alone.

docs/scaling.md has the assumptions and what the table says.
"""

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
COLUMNS = (
    "model",
    "optimizer",
    "devices",
    "GFLOPs",
    "dearest step, GFLOPs",
    "MB moved",
    "MB of state",
    *(f"ms, {name}" for name in CHIPS),
    "dearest step, ms, H100",
    "of a training step, H100",
)


def row(model: str, method: str, devices: int) -> tuple[str, ...]:
    """One line of the table."""
    params = llama_shapes(model)
    usual, dearest = (
        step_cost(method, params, devices, usual=usual, roles=ROLES, weight_decay=0.1)
        for usual in (True, False)
    )
    own, most = (_milliseconds(c, CHIPS["H100"], devices) for c in (usual, dearest))
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    training = 6e3 * count * _TOKENS / devices / CHIPS["H100"].training / _REACHED
    return (
        model,
        method,
        str(devices),
        *(f"{(c.products + c.factorizations) / 1e9:.1f}" for c in (usual, dearest)),
        f"{usual.moved / 1e6:.1f}",
        f"{usual.state / 1e6:.1f}",
        *(_cell(_milliseconds(usual, chip, devices)) for chip in CHIPS.values()),
        _cell(most),
        f"{own / (own + training):.1%}",
    )


def _milliseconds(cost: Cost, chip: Chip, devices: int) -> float:
    parts = seconds(cost, chip, devices)
    return math.nan if parts is None else 1e3 * sum(parts.values())


def _cell(milliseconds: float) -> str:
    return "—" if math.isnan(milliseconds) else f"{milliseconds:.3g}"


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
        "a LLaMA,\nfloat32, spread over all devices, as the model in docs/scaling.md "
        "works it out. Per device."
    )
    table.write(out / "cost", heading, COLUMNS, rows)
    return 0
