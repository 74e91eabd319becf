"""What the table of runs says about the arms of a claim."""

import functools
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.reporting.methods import Method, compare
from experiments.reporting.runs import Run
from experiments.study import search
from experiments.study.arms import NORMS, RATE, Arm, key
from experiments.study.search import Values
from experiments.study.table import Row


class Tried:
    """An arm with its runs.

    Attributes:
      name: of the arm.
      arm: what was to be tried.
      rows: the runs by values and seed.
    """

    def __init__(
        self, name: str, arm: Arm, known: Mapping[str, Row], norms: str | None = ""
    ):
        """Finds the runs of an arm.

        Args:
          name: of the arm.
          arm: what was to be tried.
          known: all runs by key.
          norms: folder of the norms that it refines; None: not there yet.
        """
        self.name, self.arm, self.norms = name, arm, norms
        self.rows: dict[tuple[Values, int], Row] = {}
        while norms is not None:
            missing = search.wanted(arm.search, self.losses)
            found = {
                trial: known[text]
                for trial in missing
                if (text := self.key(*trial)) in known
            }
            if not found:
                break
            self.rows |= found

    @property
    def losses(self) -> dict[tuple[Values, int], float]:
        """Of all runs; infinite where one diverged."""
        return {trial: row.loss for trial, row in self.rows.items()}

    @property
    def wanted(self) -> list[tuple[Values, int]]:
        """The runs that can be made now."""
        if self.norms is None:
            return []
        return search.wanted(self.arm.search, self.losses)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.norms is not None and not self.wanted

    @functools.cached_property
    def best(self) -> Values | None:
        """The values of the best trial."""
        return search.best(self.arm.search, self.losses)

    @property
    def edges(self) -> dict[str, str]:
        """Fields whose best lies at the edge of what was tried."""
        return search.edges(self.arm.search, self.losses)

    @property
    def chosen(self) -> dict[str, float]:
        """Field -> value of the best trial."""
        fields = [axis.field for axis in self.arm.search.axes]
        return dict(zip(fields, self.best or (), strict=False))

    @functools.cached_property
    def runs(self) -> dict[int, Row]:
        """Seed -> run of the best trial."""
        return {s: row for (values, s), row in self.rows.items() if values == self.best}

    @property
    def loss(self) -> float | None:
        """The mean over the seeds, infinite if one diverged; None without a run."""
        losses = [row.loss for row in self.runs.values()]
        return statistics.fmean(losses) if losses else None

    def median(self, field: str) -> float | None:
        """The median of a measure over the seeds; None where it is not known."""
        values = [getattr(row, field) for row in self.runs.values()]
        known = [x for x in values if x is not None]
        return statistics.median(known) if known else None

    @property
    def also_tuned(self) -> str:
        """What was tuned beside the rate, and the values of the best trial."""
        return ", ".join(
            f"{name.rpartition('.')[2]}={float(f'{value:.3g}'):g}"
            for name, value in self.chosen.items()
            if name != RATE
        )

    @property
    def sensitivities(self) -> list[float]:
        """To the rate, by seed: the mean over the rates of the loss less the least.

        Losses count up to that before the first step. All else is as it was when the
        rates were tried. Seeds without a run at every rate are left out.
        """
        by_seed: dict[int, list[float]] = {}
        for (_, seed), row in sorted(self.rates.items()):
            by_seed.setdefault(seed, []).append(row.capped)
        least = max(2, len(by_seed.get(0, [])))
        whole = [losses for losses in by_seed.values() if len(losses) >= least]
        return [statistics.fmean(losses) - min(losses) for losses in whole]

    @property
    def off_by_two(self) -> float | None:
        """How much higher the loss is at half and at twice the chosen rate: the mean.

        In nats, with the first seed and all else as it was chosen; None without runs
        at all three.
        """
        if not self.best:
            return None
        along = self._along_rates(self.best)
        by_rate = {
            row.overrides[RATE]: row.capped
            for (_, seed), row in along.items()
            if not seed
        }
        best = self.chosen.get(RATE)
        if best not in by_rate:
            return None
        beside = [
            loss
            for rate, loss in by_rate.items()
            if rate != best and max(rate / best, best / rate) < 2.01
        ]
        return statistics.fmean(beside) - by_rate[best] if len(beside) == 2 else None

    @property
    def rates(self) -> dict[tuple[Values, int], Row]:
        """The runs that differ in rate and seed only, with all else at its centre."""
        return self._along_rates(tuple(axis.center for axis in self.arm.search.axes))

    def _along_rates(self, values: Values) -> dict[tuple[Values, int], Row]:
        """The runs that differ from a trial in rate and seed only."""

        def others(values: Values) -> Values:
            pairs = zip(self.arm.search.axes, values, strict=True)
            return tuple(x for axis, x in pairs if axis.field != RATE)

        all_else = others(values)
        return {t: row for t, row in self.rows.items() if others(t[0]) == all_else}

    def point(self, values: Values) -> dict[str, Any]:
        """The fields of a trial."""
        return self.arm.fields(values, self.norms or "")

    def key(self, values: Values, seed: int) -> str:
        """What a trial is known by."""
        return key(self.arm.config, self.point(values), seed)


class Results(dict[str, Tried]):
    """The arms of a claim by name, with their runs."""

    def __init__(self, trials: Mapping[str, Arm], known: Mapping[str, Row]):
        """Finds the runs.

        Args:
          trials: the arms of a claim.
          known: all runs by key.
        """
        super().__init__()
        for name, arm in trials.items():
            if not arm.refines:
                self[name] = Tried(name, arm, known)
        for name, arm in trials.items():
            if arm.refines:
                self[name] = Tried(name, arm, known, norms_of(self[arm.refines]))

    @property
    def complete(self) -> bool:
        """Whether no run is missing."""
        return all(tried.complete for tried in self.values())

    @property
    def everywhere(self) -> bool:
        """Whether all trials of all arms get all seeds."""
        return all(tried.arm.search.everywhere for tried in self.values())

    def base(self, tried: Tried) -> Tried:
        """The first arm of the same setting, which the arm is compared with."""
        return next(x for x in self.values() if x.arm.setting == tried.arm.setting)

    def tuned(self) -> list[Method]:
        """The arms at their best trials, as a report has its methods."""
        return self._methods({x.name: x.runs.values() for x in self.values()})

    def lines(self) -> list[Method]:
        """The arms over their rates, all else at its centre, as a report has them.

        They have a sensitivity where all arms have as many rates.
        """
        found = self._methods({x.name: x.rates.values() for x in self.values()})
        known = self.sensitivities
        return [x._replace(sensitivity=known.get(x.name)) for x in found]

    @property
    def sensitivities(self) -> dict[str, float]:
        """Arm -> its mean sensitivity, where all arms are tried at as many rates."""
        if not self.everywhere:
            return {}
        return {
            name: statistics.fmean(tried.sensitivities)
            for name, tried in self.items()
            if tried.sensitivities
        }

    def _methods(self, rows: Mapping[str, Iterable[Row]]) -> list[Method]:
        runs = [_as_run(name, row) for name, own in rows.items() for row in own]
        if not runs:
            return []
        order = list(self)
        found = compare(runs, runs[0].name)[0]
        return sorted(found, key=lambda method: order.index(method.name))


def norms_of(tried: Tried) -> str | None:
    """The folder with the gradient norms of an arm's best run; None if it is not over.

    The run is that with seed 0.
    """
    if not tried.complete or tried.best is None:
        return None
    return (pathlib.PurePosixPath(NORMS) / tried.runs[0].digest).as_posix()


def _as_run(name: str, row: Row) -> Run:
    """A line of the table as a report reads a folder."""
    fields = row.overrides
    config = {
        "seed": row.seed,
        "optimizer": {
            "name": fields.get("optimizer.name", "adamw"),
            "learning_rate": fields[RATE],
        },
        "schedule": {"name": fields.get("schedule.name", "cosine")},
        "faults": {"spike_every": 0},
    }
    result = {
        "val_loss": row.val_loss,
        "best_val_loss": row.best_val_loss,
        "steps": row.steps,
        "seconds": row.seconds,
        "optimizer_state_bytes": row.state_bytes,
        "peak_memory_bytes": row.peak_memory_bytes,
        "reason": row.reason,
    }
    records: list[dict[str, float]] = []
    if row.initial_loss is not None and math.isfinite(row.initial_loss):
        records.append({"step": 1, "loss": row.initial_loss})
    records += [{"step": step, "val_loss": x} for step, x in row.curve.items()]
    if records and row.step_seconds is not None:
        records[-1]["step_seconds"] = row.step_seconds
    nothing = np.zeros(0)
    folder = pathlib.Path(row.digest)
    return Run(name, folder, config, result, records, (nothing, nothing))
