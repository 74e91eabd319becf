"""What a record of every layer costs (`train.diagnostics_every`); nothing runs."""

import pathlib

import optlab
from experiments import config as configs
from experiments.benchmark import table
from experiments.flops import count_flops
from experiments.trainer.program import Program

COLUMNS = ("optimizer", "GFLOPs a step", "GFLOPs a record", "/ step", "at every 100th")
_CONFIG = "configs/stdlib_lm.py"


def _row(name: str) -> list[str]:
    config, _ = configs.load(_CONFIG, [f"--config.optimizer.name={name}"])
    program = Program(config)
    batches = program.task.train_iterator(config.seed)
    batch = tuple(next(batches) for _ in range(program.batches_per_step))
    given = (program.abstract, batch, program.peaks)
    step, record = (
        count_flops(function, *given).total / 1e9
        for function in (program.step, program.diagnose)
    )
    share = record / step
    return [name, f"{step:.2f}", f"{record:.2f}", f"{share:.2f}", f"{share:.2f}%"]


def run(out: pathlib.Path) -> int:
    """Writes diagnostics.csv and diagnostics.md into `out`, and prints the table."""
    heading = (
        "Made by `python -m experiments.benchmark --suite=diagnostics`: FLOPs of the "
        f"training step of\n`{_CONFIG}` and of a record of all its layers, for which "
        "a step is worked out twice,\nand logits by one more forward pass; the last "
        "column is what a record at every 100th step\nadds to a training."
    )
    rows = [_row(name) for name in optlab.registry.names()]
    table.write(out / "diagnostics", heading, COLUMNS, rows)
    return 0
