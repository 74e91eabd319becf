"""What a person sees of a sweep: a live table on a terminal, plain lines elsewhere."""

import datetime
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import rich.console
import rich.live
import rich.table

from experiments import records


class Board:
    """Points by state, the best loss, those at work, the time left.

    Args:
      sweep: with `points`, `jobs`, `results`, `pruned`, `failed`, `folder` and
        `launcher`.
    """

    def __init__(self, sweep):
        self._sweep = sweep
        self._console = rich.console.Console(soft_wrap=True)
        live = self._console.is_terminal and not sweep.launcher.shares_terminal
        self._live = (
            rich.live.Live(
                self,
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            if live
            else None
        )

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str) -> None:
        """Says something once."""
        self._console.print(text, markup=False, highlight=False)

    def summary(self) -> None:
        """Says what became of all points, and why some failed."""
        for name, error in self._sweep.failed.items():
            label = self._sweep.points[name].label()
            self.line(f"failed: {self._sweep.folder / name} ({label}): {error}")
        counts = ", ".join(f"{n} {state}" for state, n in self.counts().items() if n)
        self.line(f"{counts}; best {self._best()}")

    def counts(self) -> dict[str, int]:
        """How many points are in which state."""
        sweep = self._sweep
        reasons = [result["reason"] for result in sweep.results.values()]
        pruned = len(sweep.pruned - sweep.jobs.keys())
        known = len(reasons) + len(sweep.failed) + len(sweep.jobs) + pruned
        return {
            "completed": reasons.count("completed"),
            "diverged": reasons.count("diverged"),
            "pruned": pruned,
            "failed": len(sweep.failed),
            "running": len(sweep.jobs),
            "waiting": len(sweep.points) - known,
        }

    def _best(self) -> str:
        losses = {
            name: result["val_loss"]
            for name, result in self._sweep.results.items()
            if result["reason"] == "completed"
        }
        if not losses:
            return "-"
        name = min(losses, key=losses.__getitem__)
        return f"{losses[name]:.4f} at {self._sweep.points[name].label()} ({name})"

    def _seconds_left(self) -> float | None:
        """By the time that a step took in finished points, or in those at work."""
        sweep = self._sweep
        at_work = [last_record(sweep.folder / name) for name in sweep.jobs]
        paces = [
            result["total_seconds"] / result["steps"]
            for result in sweep.results.values()
            if result.get("total_seconds") and result["steps"]
        ] or [
            r["seconds"] / r["step"] for r in at_work if r.get("seconds") and r["step"]
        ]
        if not paces:
            return None
        ended = sweep.results.keys() | sweep.failed.keys() | sweep.pruned
        steps = [
            point.config.train.steps - last_record(sweep.folder / name).get("step", 0)
            for name, point in sweep.points.items()
            if name not in ended
        ]
        at_once = max(min(sweep.launcher.workers, len(steps)), 1)
        return float(np.mean(paces)) * sum(steps) / at_once

    def __rich__(self) -> rich.table.Table:
        table = rich.table.Table(*self.counts(), "time left")
        left = self._seconds_left()
        table.add_row(
            *map(str, self.counts().values()),
            "-" if left is None else str(datetime.timedelta(seconds=round(left))),
        )
        outer = rich.table.Table.grid()
        outer.add_row(table)
        outer.add_row(f"  best loss {self._best()}")
        for name in self._sweep.jobs:
            point = self._sweep.points[name]
            record = last_record(self._sweep.folder / name)
            shown = "starting"
            if record:
                loss = record.get("loss")
                shown = f"step {record['step']}/{point.config.train.steps}"
                shown += "" if loss is None else f", loss {loss:.3f}"
            outer.add_row(f"  {name}  {point.label()}: {shown}")
        return outer


def validation_losses(added: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Step -> validation loss of the records that have one; infinite for None."""
    losses = {r["step"]: r["val_loss"] for r in added if "val_loss" in r}
    return {step: math.inf if x is None else x for step, x in losses.items()}


def last_record(folder: pathlib.Path) -> dict[str, Any]:
    """The last record of a run, {} before there is one or where it cannot be read."""
    try:
        return records.last(folder / records.NAME)
    except OSError:
        return {}
