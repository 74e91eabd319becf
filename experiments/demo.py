"""AdamW and COSMOS train the same small language model; a table and a figure compare.

    python -m experiments.demo --workdir=runs/demo

Each under two schedules, at the best rate that the study has for the pair (its claim
`larger_model`). Runs that are complete are not run again.
"""

import pathlib

import rich.console
import rich.table
from absl import flags

from experiments import command, report
from experiments import config as configs
from experiments.errors import UserError
from experiments.trainer import loop, workdir

_FLAGS = flags.FlagValues()
_WORKDIR = command.define_path(
    "workdir", "folder of the runs", _FLAGS, default="runs/demo"
)

_CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "stdlib_lm.py"
# Optimizer and schedule -> the best rate of the study's claim `larger_model`.
RATES = {
    ("adamw", "cosine"): 4e-3,
    ("adamw", "uba"): 4e-3,
    ("cosmos", "cosine"): 2e-3,
    ("cosmos", "uba"): 1e-3,
}


def _train(folder: pathlib.Path, overrides: list[str], **fields: object) -> int:
    """Trains a method, or finds it trained."""
    words = [f"--config.{x.replace('__', '.')}={value}" for x, value in fields.items()]
    config, changed = configs.load(str(_CONFIG), [*words, *overrides])
    try:
        return loop.train(config, str(folder), overrides=changed)
    except workdir.WorkdirInUse:
        raise
    except UserError:  # interrupted, or left by another version of the demo
        return loop.train(config, str(folder), overrides=changed, overwrite=True)


def compare(folder: pathlib.Path, overrides: list[str]) -> int:
    """Trains all pairs; a table, a figure, the exit status."""
    folders = []
    for (name, schedule), rate in RATES.items():
        folders.append(folder / f"{name}-{schedule}")
        status = _train(
            folders[-1],
            overrides,
            model__unroll=True,
            optimizer__name=name,
            optimizer__learning_rate=rate,
            schedule__name=schedule,
        )
        if status:
            return status
    runs = report.load_runs(folders)
    figure = report.write_report(runs, folder / "report")
    rows = report.table(runs)
    shown = rich.table.Table(*rows[0])
    for row in rows:
        shown.add_row(*row.values())
    rich.console.Console().print(shown)
    print(f"figure: {figure}")
    return 0


def main(positional: list[str], overrides: list[str]) -> int:
    """Trains both methods and compares them."""
    command.no_arguments(positional)
    return compare(pathlib.Path(_WORKDIR.value), overrides)


if __name__ == "__main__":
    command.run(main, _FLAGS)
