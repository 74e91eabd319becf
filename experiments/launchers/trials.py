"""Optuna's record of a sweep: a study for each part, a trial for each attempt."""

import math
import os
import pathlib
import uuid
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from experiments.errors import UserError
from experiments.launchers.claims import Claims, Key
from experiments.launchers.storage import Storage
from experiments.points import Part, Point
from experiments.trainer.identity import difference

# What a result has to hold for the summary of a sweep.
_KEPT = ("reason", "val_loss", "steps", "total_seconds")


class Trials:
    """The points of a sweep as its storage has them, which launchers may share.

    Axes that are numbers are the trials' parameters. Attributes are the point's name,
    its overrides, the launcher that works on it, the sweep's folder where it did, and
    at the end what was trained (config and data digest) and the result. A point at work
    is a running trial, which outlives the launcher; a failed attempt is a failed trial;
    a point that diverged has the value infinity, one that was stopped for its losses is
    a pruned trial with the step as an attribute.

    A launcher claims a point before it works on it or records what became of it, and
    reads the trials again after that. What the storage says of points that were trained
    in the launcher's own folder is not asked: the folder itself is there.
    """

    def __init__(
        self,
        storage: Storage,
        sweep: str,
        points: Sequence[Point],
        folder: pathlib.Path,
        *,
        attempts: int,
        anew: bool,
    ):
        """Opens the studies of a sweep, or makes them.

        Args:
          storage: the database.
          sweep: name of the sweep; each part appends its name.
          points: of the sweep.
          folder: of the sweep.
          attempts: how often a point may fail.
          anew: count failures from here on only.

        Raises:
          UserError: if the folder cannot be written, or the storage is away.
        """
        self.storage = storage
        self._patiently = storage.patiently
        self._studies: dict[str, optuna.Study] = {}
        self._axes: dict[str, dict[str, Any]] = {}
        self._points = {point.name: point for point in points}
        self._attempts = attempts
        try:
            (folder / ".sweep").mkdir(parents=True, exist_ok=True)
            self._where = _identity(folder / ".sweep")
        except OSError as error:
            raise UserError(f"--workdir: {error.filename}: {error.strerror}") from error
        for name, part in {p.part.name: p.part for p in points}.items():
            self._studies[name] = self._patiently(
                optuna.create_study,
                storage=storage.optuna,
                study_name="/".join(filter(None, (sweep, name))),
                sampler=optuna.samplers.RandomSampler(),
                pruner=_pruner(part),
                load_if_exists=True,
            )
            mine = [point for point in points if point.part.name == name]
            self._axes[name] = _distributions(part, mine)
        self._claims = self._patiently(Claims, storage, folder / ".sweep")
        self._reported: dict[str, int] = {}  # point -> step of the last loss told
        self._forgiven: set[tuple[str, int]] = set()
        self.refresh()
        if anew:
            self._forgiven = set(self._failed_trials)
            self.refresh()

    def __enter__(self) -> "Trials":
        try:
            self._claims.__enter__()
        except OSError as error:
            raise UserError(f"--workdir: {error.filename}: {error.strerror}") from error
        return self

    def __exit__(self, *error: object) -> None:
        self._claims.__exit__(*error)

    def refresh(self) -> None:
        """Reads what all launchers have recorded."""
        found = {
            part: self._patiently(study.get_trials, deepcopy=False)
            for part, study in self._studies.items()
        }
        errors = [self._patiently(_errors, study) for study in self._studies.values()]
        self._errors: dict[str, str] = dict(ChainMap(*errors))
        self._running: dict[str, int] = {}  # point -> number of its trial
        self._ended: dict[str, list[dict[str, Any]]] = {}  # attributes of trials
        self._pruned: dict[str, list[dict[str, Any]]] = {}
        self._failed_trials: list[tuple[str, int]] = []
        self._failures: Counter[str] = Counter()
        for part, trials in found.items():
            for trial in trials:
                said = trial.user_attrs
                point = said.get("point", "")
                if trial.state == TrialState.RUNNING:
                    self._running[point] = trial.number
                elif trial.state == TrialState.COMPLETE:
                    self._ended.setdefault(point, []).append(said)
                elif trial.state == TrialState.PRUNED and "pruned_at" in said:
                    self._pruned.setdefault(point, []).append(said)
                elif trial.state == TrialState.FAIL:
                    self._failed_trials.append((part, trial.number))
                    self._failures[point] += (part, trial.number) not in self._forgiven

    def claim(self, names: Sequence[str], room: int) -> list[str]:
        """Takes points that no other launcher works on, at most `room`.

        What the trials say of them is as of after that.
        """
        keys = [self._key(name) for name in names]
        taken = self._patiently(self._claims.take, keys, room) if keys else []
        self.refresh()
        return [point for _, point in taken]

    def release(self, name: str) -> None:
        """Leaves a claimed point to whoever wants it; its trial goes on."""
        self._patiently(self._claims.release, self._key(name))

    def lost(self, name: str) -> bool:
        """Whether another launcher has taken the point, as this one was not heard."""
        return self._key(name) in self._claims.lost

    def at_work(self, name: str) -> bool:
        """Whether the point has a running trial of this launcher."""
        return name in self._running and self._claims.holds(self._key(name))

    def begin(self, names: Sequence[str]) -> None:
        """Makes trials of claimed points, or goes on with those that they have."""
        attributes = {"owner": self._claims.owner, "workdir": self._where}
        for name in names:
            if name in self._running:
                self._note(name, **attributes)
            else:
                self._add(self._points[name], TrialState.RUNNING, None, attributes)
        self.refresh()

    def recorded(self, name: str, trained: Mapping[str, Any]) -> bool:
        """Whether there is a trial of what was trained."""
        ended = self._ended.get(name, [])
        return any(_same(said, trained) for said in ended)

    def elsewhere(self, name: str) -> list[dict[str, Any]]:
        """Attributes of the trials that ended in other folders than this sweep's."""
        ended = self._ended.get(name, [])
        return [s for s in ended if s.get("workdir", self._where) != self._where]

    def complete(
        self, name: str, result: Mapping[str, Any], trained: Mapping[str, Any]
    ) -> None:
        """Records the finished run of a claimed point.

        Args:
          name: of the point.
          result: of the run.
          trained: what its config and data were.
        """
        point = self._points[name]
        diverged = result["val_loss"] is None or result["reason"] == "diverged"
        value = math.inf if diverged else result["val_loss"]
        attributes = {
            "trained": dict(trained),
            "result": {field: result.get(field) for field in _KEPT},
            "workdir": self._where,
        }
        if name in self._running:
            self._note(name, **attributes)
            self._tell(name, values=value)
        else:  # it was trained without this storage
            self._add(point, TrialState.COMPLETE, value, attributes)
        self._ended.setdefault(name, []).append(_attributes(point) | attributes)
        self.release(name)

    def fail(self, name: str, error: str) -> None:
        """Records a failed attempt."""
        study = self._studies[self._points[name].part.name]
        self._patiently(study.set_user_attr, name, error)
        self._tell(name, state=TrialState.FAIL)
        self._failures[name] += 1
        self._errors[name] = error
        self.release(name)

    def hopeless(self, name: str, losses: Mapping[int, float]) -> bool:
        """Whether a point at work should stop, by its validation losses so far."""
        if name not in self._running:
            return False
        if max(losses, default=-1) <= self._reported.get(name, -1):
            return False
        return self._patiently(self._report, name, losses)

    def _report(self, name: str, losses: Mapping[int, float]) -> bool:
        trial, stored = self._trial(name)
        told = self._reported.get(name, max(stored.intermediate_values, default=-1))
        found = False
        for step in sorted(step for step in losses if step > told):
            trial.report(losses[step], step)
            self._reported[name] = step
            found = found or trial.should_prune()
        return found

    def prune(self, name: str, trained: Mapping[str, Any]) -> None:
        """Records that a point was stopped for its losses."""
        self._note(name, pruned_at=self._reported.pop(name), trained=dict(trained))
        self._tell(name, state=TrialState.PRUNED)
        self._pruned.setdefault(name, []).append({"trained": dict(trained)})
        self.release(name)

    def pruned(self, name: str, trained: Mapping[str, Any]) -> bool:
        """Whether a run of that was stopped for its losses."""
        pruned = self._pruned.get(name, [])
        return any(_same(said, trained) for said in pruned)

    def attempts_left(self, name: str) -> int:
        """How often the point may still be tried."""
        return self._attempts - self._failures[name]

    def last_error(self, name: str) -> str:
        """Why the point failed last."""
        return self._errors.get(name, "")

    def _key(self, name: str) -> Key:
        return self._studies[self._points[name].part.name].study_name, name

    def _trial(self, name: str) -> tuple[optuna.trial.Trial, optuna.trial.FrozenTrial]:
        study = self._studies[self._points[name].part.name]
        stored = study.get_trials(deepcopy=False)[self._running[name]]
        return optuna.trial.Trial(study, stored._trial_id), stored

    def _note(self, name: str, **attributes: Any) -> None:
        """Writes attributes, unless another launcher has ended the trial."""
        if name not in self._running:
            return
        trial, stored = self._patiently(self._trial, name)
        if not stored.state.is_finished():
            for key, value in attributes.items():
                self._patiently(trial.set_user_attr, key, value)

    def _tell(self, name: str, **what: Any) -> None:
        """Ends the running trial; told again after a lost answer it stays as it is."""
        study = self._studies[self._points[name].part.name]
        number = self._running.pop(name, None)
        if number is not None:
            self._patiently(study.tell, number, **what, skip_if_finished=True)

    def _add(
        self,
        point: Point,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
    ) -> None:
        study, ranges = self._studies[point.part.name], self._axes[point.part.name]
        trial = optuna.trial.create_trial(
            state=state,
            value=value,
            params={axis: point.overrides[axis] for axis in ranges},
            distributions=ranges,
            user_attrs=_attributes(point) | dict(attributes),
        )
        try:
            self._patiently(study.add_trial, trial)
        except ValueError as error:
            raise UserError(
                f"--storage: study {study.study_name} has other axes, {error}; "
                "choose another --workdir or --storage, or another name of the part"
            ) from error


def _same(said: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether a trial is of that; one of before that was noted is."""
    return not difference(said.get("trained", trained), trained)


def _identity(folder: pathlib.Path) -> str:
    """The name of a sweep's folder, on whichever machine and path it is seen."""
    path = folder / "id"
    if not path.exists():
        name = uuid.uuid4().hex
        own = folder / name
        own.write_text(name)
        try:
            os.link(own, path)
        except FileExistsError:  # another launcher was quicker
            pass
        except OSError:  # a file system without links
            own.replace(path)
        own.unlink(missing_ok=True)
    return path.read_text()


def _pruner(part: Part) -> optuna.pruners.BasePruner:
    if part.pruning is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=part.pruning["first"], reduction_factor=part.pruning["factor"]
    )


def _errors(study: optuna.Study) -> dict[str, str]:
    """Why points of a study failed last."""
    return study.user_attrs


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
