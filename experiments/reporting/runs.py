"""Runs as their folders have them, and the names that tell them apart."""

import json
import math
import os
import pathlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments import records
from experiments.errors import UserError, nearest
from experiments.fields import FIELDS
from experiments.reporting.escape import visible
from experiments.reporting.thinning import keep, number
from experiments.trainer.identity import MAY_CHANGE, flatten_json

# Fields that make no other method: a method has many rates and seeds.
_ASIDE = ("seed", "optimizer.learning_rate", *MAY_CHANGE)
_NAMES = ("optimizer.name", "schedule.name")
# What a report needs of a config, and of a result where it is known.
_NEEDED = {
    "seed": int,
    "optimizer.name": str,
    "optimizer.learning_rate": (int, float),
    "schedule.name": str,
}
_NUMBERS = (
    *("val_loss", "best_val_loss", "steps", "seconds"),
    *("optimizer_state_bytes", "peak_memory_bytes"),
)


class Run(NamedTuple):
    """What a run's folder holds; `name` is that of its method, alike for all rates.

    `records` and `losses` are those of `thinning.Kept`.
    """

    name: str
    folder: pathlib.Path
    config: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, float]]
    losses: tuple[np.ndarray, np.ndarray]

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.config["optimizer"]["learning_rate"]

    @property
    def seed(self) -> int:
        """The seed of weights and data."""
        return self.config["seed"]

    @property
    def reason(self) -> str:
        """How the run ended, `unfinished` where it has not."""
        return self.result.get("reason", "unfinished")

    @property
    def diverged(self) -> bool:
        """Whether it ended without a finite loss."""
        return self.reason == "diverged"

    @property
    def loss(self) -> float | None:
        """The validation loss at the end; infinite if diverged, None if unfinished."""
        if self.diverged:
            return math.inf
        return self.result.get("val_loss") if self.reason == "completed" else None

    @property
    def steps(self) -> int:
        """How many were made."""
        last = self.records[-1]["step"] if self.records else 0
        return self.result.get("steps", last)

    @property
    def initial_loss(self) -> float | None:
        """The training loss before the first step."""
        first = self.records[0] if self.records else {}
        return first.get("loss") if first.get("step") == 1 else None

    @property
    def train_loss(self) -> float | None:
        """The mean training loss of the last tenth of the records."""
        losses = [r["loss"] for r in self.records if "loss" in r]
        last = losses[-math.ceil(len(losses) / 10) :]
        return statistics.fmean(last) if last else None

    @property
    def accuracy(self) -> float | None:
        """That of the last evaluation, a share of 1; None where the task has none."""
        found = reversed(self.records)
        return next((r["val_accuracy"] for r in found if "val_accuracy" in r), None)

    def largest(self, field: str) -> float | None:
        """The largest of a field's numbers in the records; None where it has none."""
        return max((r[field] for r in self.records if field in r), default=None)

    @property
    def step_seconds(self) -> list[float]:
        """The time of a step, by record."""
        return [r["step_seconds"] for r in self.records if "step_seconds" in r]

    def validation(self) -> list[dict[str, float]]:
        """The records that have a finite validation loss."""
        return [r for r in self.records if "val_loss" in r]


def by_loss(one: Any) -> tuple[int, float]:
    """The key that sorts runs or methods: by loss, then the unfinished, the diverged.

    Args:
      one: has `loss`, as `Run` has.
    """
    if one.loss is None:
        return 1, 0.0
    return (0, one.loss) if math.isfinite(one.loss) else (2, 0.0)


def load_runs(
    folders: Iterable[str | pathlib.Path], tuned: Iterable[str] = ()
) -> list[Run]:
    """Reads every run at or below the folders; links are followed.

    A damaged run is left out, with a line on stderr that names it.

    Args:
      folders: to look in.
      tuned: fields of the config that make no other method, beside rate and seed.

    Raises:
      UserError: if there is no such folder, no run that can be read, or no such field.
    """
    roots = [pathlib.Path(folder) for folder in folders]
    found, said = {}, []
    for path in find(roots, said):
        try:
            found[path] = _read(path, said)
        except _Damaged as error:
            said.append(f"{path} is no whole run and is left out, {error}")
    said = [visible(line) for line in said]
    if not found:
        others = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
        raise UserError(f"no run to report: {said[0]}{others}")
    for line in said:
        print(f"warning: {line}", file=sys.stderr)
    flat = _as_of_today([flatten_json(config) for config, *_ in found.values()])
    names = _names(flat, (*_ASIDE, *_NAMES, *_checked(tuned, flat)))
    return [
        Run(name, path, *parts)
        for name, (path, parts) in zip(names, found.items(), strict=True)
    ]


def _as_of_today(flat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the default of each field that came after a run, which it had in effect."""
    there = set().union(*flat) & FIELDS.keys()
    starts = {x: FIELDS[x].default for x in there}
    starts = {x: None if isinstance(y, type) else y for x, y in starts.items()}
    return [starts | config for config in flat]


def _known(value: Any) -> bool:
    """Whether a result has it as it should be, None being unknown."""
    return value is None or number(value) is not None


class _Damaged(Exception):
    """Says which file of a run cannot be read, and why."""


def find(roots: Iterable[pathlib.Path], said: list[str]) -> Iterator[pathlib.Path]:
    """Each folder with a `metrics.jsonl` once, without its links.

    Args:
      roots: to look in; below them too.
      said: gets a line for each that has none, or cannot be read.
    """
    seen = set()

    def refused(error: OSError) -> None:
        said.append(f"{error.filename}: {error.strerror}")

    for root in roots:
        if not root.is_dir():
            raise UserError(f"no folder {visible(str(root))!r}")
        walk = os.walk(root, followlinks=True, onerror=refused)
        empty = True
        for folder, inside, files in walk:
            path = pathlib.Path(folder).resolve()
            if path in seen:
                empty = False
                inside.clear()
                continue
            seen.add(path)
            # A link to where it lies itself would lead to runs that nobody named.
            inside[:] = [
                name
                for name in sorted(inside)
                if not (path / name).is_symlink()
                or not path.is_relative_to((path / name).resolve())
            ]
            if records.NAME in (*files, *inside):
                empty = False
                yield path
        if empty:
            said.append(f"{root}: no run ({records.NAME}) at or below it")


def _read(path: pathlib.Path, said: list[str]) -> tuple[Any, ...]:
    """Config, result, records and losses of a run; what is odd is said."""
    config = _object(path / "config.json").get("config")
    fields = flatten_json(config) if isinstance(config, dict) else {}
    for name, kind in _NEEDED.items():
        if not isinstance(fields.get(name), kind):
            raise _Damaged(f"config.json: {name} is {fields.get(name)!r:.40}")
    rate = fields["optimizer.learning_rate"]
    if not number(rate) or rate < 0:
        raise _Damaged(f"config.json: optimizer.learning_rate is {rate!r}")
    result = {}
    if os.path.lexists(path / "result.json"):
        result = _object(path / "result.json")
        for name in ("reason", *_NUMBERS):
            value = result.get(name)
            right = isinstance(value, str) if name == "reason" else _known(value)
            if not right:
                raise _Damaged(f"result.json: {name} is {value!r:.40}")
    every = fields.get("faults.spike_every")
    spiked = isinstance(every, int) and every > 0
    try:
        reader = records.Reader(_file(path / records.NAME))
        kept = keep(reader.added(complete=True), losses=spiked)
    except OSError as error:
        raise _Damaged(f"{records.NAME}: {error.strerror}") from error
    if reader.bad:
        lines = f"{len(reader.bad)} of its lines, the first is {reader.bad[0]}"
        if not kept.records:
            raise _Damaged(f"{records.NAME} holds no record")
        said.append(f"{path / records.NAME}: no record in {lines}")
    return config, result, *kept


def _file(path: pathlib.Path) -> pathlib.Path:
    """The path of a file; no folder, no pipe, no link to nothing."""
    if not path.is_file():
        there = os.path.lexists(path)
        raise _Damaged(f"{path.name} is {'no file' if there else 'missing'}")
    return path


def _object(path: pathlib.Path) -> dict[str, Any]:
    """What a JSON file holds."""
    try:
        content = json.loads(_file(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _Damaged(f"{path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{path.name}: {error}") from error
    if not isinstance(content, dict):
        raise _Damaged(f"{path.name} holds {content!r:.40}")
    return content


def _checked(tuned: Iterable[str], flat: list[dict[str, Any]]) -> list[str]:
    """The fields, all of which are known."""
    tuned = list(tuned)
    known = sorted({*FIELDS, *(field for fields in flat for field in fields)})
    for field in tuned:
        if field not in known:
            raise UserError(
                f"--tuned: given {field!r}, allowed fields of the runs' configs, such "
                f"as optimizer.weight_decay{nearest(field, known)}"
            )
    return tuned


def _names(flat: list[dict[str, Any]], aside: tuple[str, ...]) -> list[str]:
    """Optimizer, schedule, and the fields in which runs of these differ.

    A field that is off (None, False or empty) is not said, unless there are two such
    values of it.
    """
    alike = defaultdict(list)
    for fields in flat:
        alike[tuple(fields[name] for name in _NAMES)].append(fields)
    varied = {
        key: [
            field
            for field in sorted({field for fields in group for field in fields})
            if field not in aside
            and len({repr(fields.get(field)) for fields in group}) > 1
        ]
        for key, group in alike.items()
    }
    # Two values that are off look alike unless they are said.
    both = {
        (key, field)
        for key, group in alike.items()
        for field in varied[key]
        if len({repr(x.get(field)) for x in group if _off(x.get(field))}) > 1
    }
    names = []
    for fields in flat:
        key = tuple(fields[name] for name in _NAMES)
        own = [
            f"{field.rpartition('.')[2]}={_short(fields.get(field))}"
            for field in varied[key]
            if not _off(fields.get(field)) or (key, field) in both
        ]
        names.append(visible(", ".join([*key, *own])))
    return names


def _off(value: Any) -> bool:
    return value is None or value is False or value == ""


def _short(value: Any) -> str:
    """A value of a config; two floats never look alike."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(text) != value else text
