"""Temporary memory and work of a gradient, made in each way; nothing runs."""

import pathlib

import jax

from experiments import config as configs
from experiments.benchmark import table
from experiments.flops import count_flops
from experiments.trainer.gradient import Gradient
from experiments.trainer.program import Program

COLUMNS = (
    "gradient",
    "windows",
    "temporary MB",
    "/ exact",
    "/ parameters",
    "GFLOPs",
    "/ exact",
)
_CONFIG = "configs/stdlib_lm.py"
_MODEL = ("model.size=60M", "task.context=256")
_BATCHES = (4, 16)
# The way -> its kind, and whether each layer is made again in the backward pass.
_WAYS = {
    "exact": ("exact", False),
    "exact, layers made again": ("exact", True),
    "forward": ("forward", False),
    "zeroth": ("zeroth", False),
}


def _measured(kind: str, remat: bool, windows: int) -> tuple[float, float, float]:
    """Temporary MB of the compiled gradient, its GFLOPs, and the parameters' MB."""
    fields = (*_MODEL, f"model.remat={remat}", f"train.batch_size={windows}")
    config, _ = configs.load(_CONFIG, [f"--config.{field}" for field in fields])
    program = Program(config)
    params, task = program.abstract.params, program.task

    def loss(params, batch):
        return task.loss(params, batch, jax.random.key(0))[:2]

    made = Gradient(kind).maker(loss)

    def gradient(params, batch):
        return made(params, jax.random.key(0), batch)

    given = params, next(task.train_iterator(0))
    compiled = jax.jit(gradient).lower(*given).compile()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    flops = count_flops(gradient, *given).total
    return temporary / 1e6, flops / 1e9, size / 1e6


def run(out: pathlib.Path) -> int:
    """Writes gradients.csv and gradients.md into `out`, and prints the table."""
    rows = []
    for windows in _BATCHES:
        found = {way: _measured(*how, windows) for way, how in _WAYS.items()}
        base = found["exact"]
        for way, (memory, flops, size) in found.items():
            ratios = memory / base[0], memory / size, flops / base[1]
            numbers = (memory, *ratios[:2], flops, ratios[2])
            forms = ("{:.0f}", "{:.2f}", "{:.2f}", "{:.0f}", "{:.2f}")
            texts = [f.format(x) for f, x in zip(forms, numbers, strict=True)]
            rows.append((way, str(windows), *texts))
    heading = (
        "Made by `python -m experiments.benchmark --suite=gradients`: the gradient of "
        "a LLaMA-60M on windows of\n256 bytes, compiled for a CPU: temporary memory "
        "beside parameters and gradient, and FLOPs. Forward and\nzeroth have one "
        "direction."
    )
    table.write(out / "gradients", heading, COLUMNS, rows)
    return 0
