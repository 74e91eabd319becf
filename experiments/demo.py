"""AdamW and COSMOS train the same small language model; a table and a figure compare.

    python -m experiments.demo --workdir=runs/demo
    python -m experiments.demo --workdir=runs/rates --rates=0.002,0.004 --methods=cosmos

With `--rates` the methods train at each of them, and `rates.md` and `rates.csv` list
the losses of all runs in the folder; results/demo/ has the table that the demo's own
rates come from. Runs that are complete are not run again.
"""

import pathlib

import rich.console
import rich.table
from absl import flags

from experiments import command, report
from experiments import config as configs
from experiments.errors import UserError
from experiments.reporting import files
from experiments.trainer import loop, workdir

_FLAGS = flags.FlagValues()
_WORKDIR = command.define_path(
    "workdir", "folder of the runs", _FLAGS, default="runs/demo"
)
_RATES = flags.DEFINE_list(
    "rates", [], "learning rates to try, instead of the demo's", flag_values=_FLAGS
)
_METHODS = flags.DEFINE_list(
    "methods", ["adamw", "cosmos"], "what --rates is for", flag_values=_FLAGS
)

_CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "stdlib_lm.py"
# Optimizer -> schedule, and the best rate of results/demo/rates.md.
METHODS = {"adamw": ("cosine", 4e-3), "cosmos": ("uba", 2e-3)}


def _train(folder: pathlib.Path, name: str, rate: float, overrides: list[str]) -> int:
    """Trains one method, or finds it trained."""
    schedule, _ = METHODS[name]
    own = {
        "optimizer.name": name,
        "optimizer.learning_rate": rate,
        "schedule.name": schedule,
    }
    words = [f"--config.{field}={value}" for field, value in own.items()]
    config, changed = configs.load(str(_CONFIG), [*words, *overrides])
    try:
        return loop.train(config, str(folder), overrides=changed)
    except workdir.WorkdirInUse:
        raise
    except UserError:  # interrupted, or left by another version of the demo
        return loop.train(config, str(folder), overrides=changed, overwrite=True)


def compare(folder: pathlib.Path, overrides: list[str]) -> int:
    """Trains both methods at their best rates; a table, a figure, the exit status."""
    for name, (_, rate) in METHODS.items():
        status = _train(folder / name, name, rate, overrides)
        if status:
            return status
    runs = report.load_runs([folder / name for name in METHODS])
    figure = report.write_report(runs, folder / "report")
    _print(report.table(runs))
    print(f"figure: {figure}")
    return 0


def try_rates(
    folder: pathlib.Path, methods: list[str], rates: list[float], overrides: list[str]
) -> int:
    """Trains the methods at every rate; rates.md, rates.csv, the exit status."""
    for name in methods:
        for rate in rates:
            status = _train(folder / f"{name}-{rate:g}", name, rate, overrides)
            if status in (129, 130, 143):
                return status
    rows = report.table(report.load_runs([folder]))
    for row in rows:
        del row["seconds"]  # what counts is the loss after equal steps
    _print(rows)
    (folder / "rates.md").write_text(files.markdown(*files.split(rows)))
    files.write_csv(folder / "rates.csv", *files.split(rows))
    return 0


def _print(rows: list[dict[str, str]]) -> None:
    shown = rich.table.Table(*rows[0])
    for row in rows:
        shown.add_row(*row.values())
    rich.console.Console().print(shown)


def main(positional: list[str], overrides: list[str]) -> int:
    """Trains both methods and compares them."""
    command.no_arguments(positional)
    try:
        rates = [float(rate) for rate in _RATES.value]
    except ValueError as error:
        raise UserError(f"--rates: {error}, allowed numbers") from error
    for name in _METHODS.value:
        if name not in METHODS:
            raise UserError(f"--methods: given {name!r}, allowed {', '.join(METHODS)}")
    folder = pathlib.Path(_WORKDIR.value)
    if rates:
        return try_rates(folder, _METHODS.value, rates, overrides)
    return compare(folder, overrides)


if __name__ == "__main__":
    command.run(main, _FLAGS)
