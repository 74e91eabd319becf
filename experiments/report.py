"""Compares runs: reads their folders, writes a table and a figure.

    python -m experiments.report runs/a runs/b

Every folder with a `metrics.jsonl` at or below the ones named is a run. `report/` is
made in the first one named.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments import command
from experiments.config import UserError
from experiments.trainer import metrics

_OUTPUT = flags.DEFINE_string("output", None, "folder to write, instead of report/")

# Okabe and Ito's colours, which colour-blind readers tell apart; dashes serve print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":")


class Run(NamedTuple):
    """What a run's folder holds; `name` says what tells it from the others."""

    name: str
    config: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, Any]]


def load_runs(folders: Iterable[str | pathlib.Path]) -> list[Run]:
    """Reads every run at or below the folders.

    Raises:
      UserError: if there is none.
    """
    roots = [pathlib.Path(folder) for folder in folders]
    found = [path for root in roots for path in sorted(root.rglob("metrics.jsonl"))]
    if not found:
        raise UserError(f"no run (metrics.jsonl) below {', '.join(map(str, roots))}")
    runs = []
    for path in found:
        config = json.loads((path.parent / "config.json").read_text())["config"]
        result = path.parent / "result.json"
        runs.append(
            Run(
                name=f"{config['optimizer']['name']}, {config['schedule']['name']}",
                config=config,
                result=json.loads(result.read_text()) if result.exists() else {},
                records=metrics.read(path),
            )
        )
    return runs


def table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a run, as text; a run that did not complete says so."""
    rows = []
    for run in runs:
        loss = run.result.get("val_loss")
        optimizer = run.config["optimizer"]
        rows.append(
            {
                "optimizer, schedule": run.name,
                "rate": f"{optimizer['learning_rate']:g}",
                "val loss": "-" if loss is None else f"{loss:.4f}",
                "steps": str(run.result.get("steps", len(run.records))),
                "seconds": f"{run.result.get('seconds', 0):.0f}",
                "state bytes": f"{run.result.get('optimizer_state_bytes', 0):,}",
                "ended": run.result.get("reason", "unfinished"),
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *(list(row.values()) for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw_losses(runs: Sequence[Run], path: pathlib.Path) -> None:
    """Validation loss against steps and against seconds of training, as one figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    finals = []
    for i, run in enumerate(runs):
        points = [r for r in run.records if r.get("val_loss") is not None]
        losses = [record["val_loss"] for record in points]
        label = f"{run.name} (rate {run.config['optimizer']['learning_rate']:g})"
        if run.result.get("reason") == "diverged":
            label += ", diverged"
        for axis, unit in zip(axes, ("step", "seconds"), strict=True):
            axis.plot(
                [record[unit] for record in points],
                losses,
                label=label,
                color=_COLOURS[i % len(_COLOURS)],
                linestyle=_DASHES[i % len(_DASHES)],
                linewidth=2,
            )
        finals += losses[-1:]
        if losses:
            axes[0].annotate(
                f"{losses[-1]:.3f}",
                (points[-1]["step"], losses[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=_COLOURS[i % len(_COLOURS)],
            )
    axes[0].set(xlabel="steps", ylabel="validation loss (nats per token)")
    axes[1].set(xlabel="seconds of training, without compiling and evaluating")
    axes[0].margins(x=0.1)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=150)


def write_report(runs: Sequence[Run], folder: pathlib.Path) -> pathlib.Path:
    """Writes `results.md` and `losses.png`, and returns the path of the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(markdown(table(runs)))
    draw_losses(runs, folder / "losses.png")
    return folder / "losses.png"


def main(positional: list[str], overrides: list[str]) -> int:
    """Writes the report of the folders named."""
    command.no_arguments((), overrides)
    if not positional:
        raise UserError("name at least one folder with runs")
    output = pathlib.Path(_OUTPUT.value or pathlib.Path(positional[0]) / "report")
    runs = load_runs(positional)
    figure = write_report(runs, output)
    print(markdown(table(runs)), end="")
    print(f"figure: {figure}")
    return 0


if __name__ == "__main__":
    command.run(main)
