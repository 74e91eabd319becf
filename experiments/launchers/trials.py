"""Optuna's record of a sweep: a study for each part, a trial for each attempt."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from experiments.config import UserError
from experiments.points import Part, Point


class Trials:
    """The queue of points; only the launcher holds one.

    Axes that are numbers are the trials' parameters, the point's name and all of its
    overrides are attributes. A point that waits for a worker is a waiting trial, one at
    work a running trial, which outlives the launcher; a failed attempt is a failed
    trial; a point that diverged has the value infinity, one that was stopped for its
    losses is a pruned trial with the step as an attribute.
    """

    def __init__(
        self, storage: str, sweep: str, points: Sequence[Point], *, attempts, anew
    ):
        """Opens the studies of a sweep, or makes them.

        Args:
          storage: URL of the database.
          sweep: name of the sweep; parts append theirs.
          points: of the sweep.
          attempts: how often a point may fail.
          anew: count failures from here on only.

        Raises:
          UserError: if the storage does not open.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._studies: dict[str, optuna.Study] = {}
        self._axes: dict[str, dict[str, Any]] = {}
        self._points = {point.name: point for point in points}
        parts = {point.part.name: point.part for point in points}
        try:
            # For the bare scheme SQLAlchemy 2.1 takes psycopg 3; ours is psycopg2.
            url = storage.replace("postgresql://", "postgresql+psycopg2://", 1)
            opened = optuna.storages.get_storage(url)
            for name, part in parts.items():
                self._studies[name] = optuna.create_study(
                    storage=opened,
                    study_name="/".join(filter(None, (sweep, name))),
                    sampler=optuna.samplers.RandomSampler(),
                    pruner=_pruner(part),
                    load_if_exists=True,
                )
                mine = [point for point in points if point.part.name == name]
                self._axes[name] = _distributions(part, mine)
        except Exception as error:  # of whichever database the URL names
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"--storage: {storage} does not open, {reason}") from error
        self._queue: list[str] = []  # parts, as often as they have waiting trials
        self._running: dict[str, int] = {}  # point -> number of its trial
        self._known: set[str] = set()  # points with a waiting or running trial
        self._complete: set[str] = set()
        self._pruned: set[str] = set()
        self._reported: dict[str, int] = {}  # point -> step of the last loss told
        self._again: list[str] = []
        self._failures: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._attempts = attempts
        for name, study in self._studies.items():
            self._read(name, study, anew)

    def _read(self, part: str, study: optuna.Study, anew: bool) -> None:
        for trial in study.get_trials(deepcopy=False):
            point = trial.user_attrs.get("point", "")
            if trial.state == TrialState.WAITING:
                self._queue.append(part)
                self._known.add(point)
            elif trial.state == TrialState.RUNNING:
                self._running[point] = trial.number
                self._known.add(point)
                if point in self._points:
                    self._again.append(point)
            elif trial.state == TrialState.COMPLETE:
                self._complete.add(point)
            elif trial.state == TrialState.PRUNED and "pruned_at" in trial.user_attrs:
                self._pruned.add(point)
            elif trial.state == TrialState.FAIL:
                self._failures[point] += not anew
        self._errors |= study.user_attrs

    def enqueue(self, points: Sequence[Point]) -> None:
        """Gives each point a waiting trial, unless it has one or is at work."""
        for point in points:
            if point.name in self._known:
                continue
            part = point.part.name
            values = {axis: point.overrides[axis] for axis in self._axes[part]}
            with warnings.catch_warnings():
                # A value outside what the study has seen before: the file was edited.
                warnings.simplefilter("ignore")
                self._studies[part].enqueue_trial(values, user_attrs=_attributes(point))
            self._queue.append(part)
            self._known.add(point.name)
            self._complete.discard(point.name)  # its folder has gone since

    def ask(self) -> str | None:
        """The next point to run, None if there is none."""
        if self._again:
            return self._again.pop(0)
        while self._queue:
            part = self._queue.pop(0)
            study = self._studies[part]
            try:
                trial = study.ask(self._axes[part])
            except ValueError as error:
                raise UserError(
                    f"--storage: study {study.study_name} has other axes, {error}; "
                    "choose another --workdir or --storage, or name the part anew"
                ) from error
            name = trial.user_attrs.get("point", "")
            self._known.discard(name)
            done = name in self._complete
            if name not in self._points or done:  # the file was edited, or finished
                study.tell(trial, state=TrialState.PRUNED)
                continue
            self._running[name] = trial.number
            self._known.add(name)
            return name
        return None

    def again(self, name: str) -> None:
        """Puts back a point that was stopped; its trial goes on."""
        self._again.append(name)

    def complete(self, point: Point, result: dict[str, Any]) -> bool:
        """Records a finished run; whether that is news."""
        if point.name in self._complete:
            return False
        study = self._studies[point.part.name]
        loss = result["val_loss"]
        diverged = loss is None or result["reason"] == "diverged"
        value = math.inf if diverged else loss
        if point.name in self._running:
            study.tell(self._running.pop(point.name), value)
            self._known.discard(point.name)
        else:  # it was trained without this storage
            ranges = self._axes[point.part.name]
            trial = optuna.trial.create_trial(
                value=value,
                params={axis: point.overrides[axis] for axis in ranges},
                distributions=ranges,
                user_attrs=_attributes(point),
            )
            study.add_trial(trial)
        if point.name in self._again:
            self._again.remove(point.name)
        self._complete.add(point.name)
        return True

    def fail(self, name: str, error: str) -> None:
        """Records a failed attempt."""
        study = self._studies[self._points[name].part.name]
        number = self._running.pop(name)
        self._known.discard(name)
        self._failures[name] += 1
        self._errors[name] = error
        study.set_user_attr(name, error)
        study.tell(number, state=TrialState.FAIL)

    def hopeless(self, name: str, losses: Mapping[int, float]) -> bool:
        """Whether a point at work should stop, by its validation losses so far."""
        number = self._running.get(name)
        if number is None or max(losses, default=-1) <= self._reported.get(name, -1):
            return False
        study = self._studies[self._points[name].part.name]
        stored = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, stored._trial_id)
        told = self._reported.get(name, max(stored.intermediate_values, default=-1))
        found = False
        for step in sorted(step for step in losses if step > told):
            trial.report(losses[step], step)
            self._reported[name] = step
            found = found or trial.should_prune()
        return found

    def prune(self, name: str) -> None:
        """Records that a point was stopped for its losses."""
        study = self._studies[self._points[name].part.name]
        number = self._running.pop(name)
        stored = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, stored._trial_id)
        trial.set_user_attr("pruned_at", self._reported.pop(name))
        study.tell(number, state=TrialState.PRUNED)
        self._known.discard(name)
        self._pruned.add(name)

    def pruned(self, name: str) -> bool:
        """Whether the point was stopped for its losses."""
        return name in self._pruned

    def attempts_left(self, name: str) -> int:
        """How often the point may still be tried."""
        return self._attempts - self._failures[name]

    def last_error(self, name: str) -> str:
        """Why the point failed last."""
        return self._errors.get(name, "")


def _pruner(part: Part) -> optuna.pruners.BasePruner:
    if part.pruning is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=part.pruning["first"], reduction_factor=part.pruning["factor"]
    )


def _attributes(point: Point) -> dict[str, Any]:
    return {"point": point.name, "overrides": point.overrides}


def _distributions(part: Part, points: Sequence[Point]) -> dict[str, Any]:
    """The ranges of the axes that are numbers."""
    ranges: dict[str, Any] = {}
    for axis in dict.fromkeys([*part.axes, "seed"]):
        values = [point.overrides[axis] for point in points]
        if any(isinstance(value, bool) for value in values):
            continue
        if all(isinstance(value, int) for value in values):
            ranges[axis] = optuna.distributions.IntDistribution(
                min(values), max(values)
            )
        elif all(isinstance(value, (int, float)) for value in values):
            ranges[axis] = optuna.distributions.FloatDistribution(
                min(values), max(values), log=min(values) > 0
            )
    return ranges
