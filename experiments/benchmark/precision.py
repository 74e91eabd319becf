"""Trains under the precision that products have on a TPU, beside float32's.

    python -m experiments.benchmark --suite=precision --precision_runs=runs/precision

Each method trains `configs/stdlib_lm.py` at width 64 from three seeds, twice: as on a
CPU, and with every product rounded as `optlab.matrices.precision` has it lowered for a
TPU. Runs that are complete are not run again.
"""

import contextlib
import json
import pathlib
import statistics

from absl import flags

from experiments import command
from experiments import config as configs
from experiments.benchmark import table
from experiments.errors import UserError
from experiments.trainer import loop
from optlab.matrices.precision import emulate

FLAGS = flags.FlagValues()
_RUNS = command.define_path(
    "precision_runs", "precision: folder of its runs", FLAGS, default="runs/precision"
)
_CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "stdlib_lm.py"
# The best rates of results/sweeps/optimizers, for the same model.
RATES = {
    "cosmos": 4e-3,
    "lanton": 2e-2,
    "muon": 2e-2,
    "root": 2e-2,
    "scion": 5e-4,
    "soap": 8e-3,
}
SEEDS = (0, 1, 2)
STEPS = 150
_SMALL = {
    "model.unroll": True,
    "model.width": 64,
    "model.hidden": 176,
    "task.eval_windows": 128,
    "train.batch_size": 8,
    "train.steps": STEPS,
    "train.eval_every": STEPS,
    "train.checkpoint_every": STEPS,
}
COLUMNS = (
    "optimizer",
    "rate",
    "float32",
    "spread",
    "emulated",
    "spread",
    "difference",
    "within the spread",
)


def _loss(folder: pathlib.Path, name: str, seed: int, kind: str) -> float:
    """The last validation loss of a run, made now or before."""
    result = folder / "result.json"
    words = _SMALL | {
        "optimizer.name": name,
        "optimizer.learning_rate": RATES[name],
        "seed": seed,
    }
    if name in ("muon", "root"):  # Whose rate is no rate of the other leaves.
        words["optimizer.adam_learning_rate"] = 4e-3
    config, changed = configs.load(
        str(_CONFIG), [f"--config.{field}={value}" for field, value in words.items()]
    )
    with emulate("tpu") if kind == "tpu" else contextlib.nullcontext():
        status = loop.train(config, str(folder), overrides=changed)
    if status:
        raise UserError(f"{folder}: the run ended with status {status}")
    return json.loads(result.read_text())["val_loss"]


def row(name: str, plain: list[float], emulated: list[float]) -> tuple[str, ...]:
    """A method's line, from its losses by seed."""
    spreads = [max(losses) - min(losses) for losses in (plain, emulated)]
    difference = statistics.mean(emulated) - statistics.mean(plain)
    return (
        name,
        f"{RATES[name]:g}",
        *(
            text
            for losses, spread in zip((plain, emulated), spreads, strict=True)
            for text in (f"{statistics.mean(losses):.4f}", f"{spread:.4f}")
        ),
        f"{difference:+.4f}",
        "yes" if abs(difference) <= max(spreads) else "no",
    )


def run(out: pathlib.Path) -> int:
    """Writes precision.csv and precision.md into `out`, and prints the table."""
    folder = pathlib.Path(_RUNS.value)
    rows = []
    for name in RATES:
        losses = [
            [
                _loss(folder / f"{name}-{kind}-{seed}", name, seed, kind)
                for seed in SEEDS
            ]
            for kind in ("float32", "tpu")
        ]
        rows.append(row(name, *losses))
    heading = (
        "Made by `python -m experiments.benchmark --suite=precision`: mean and spread "
        f"(largest less least) of the\nvalidation losses of {len(SEEDS)} seeds after "
        f"{STEPS} steps of `configs/stdlib_lm.py` at width 64, with products in\n"
        "float32 and with products rounded as they are on a TPU, emulated on a CPU."
    )
    table.write(out / "precision", heading, COLUMNS, rows)
    return 0
