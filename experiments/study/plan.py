"""Which runs are wanted next, and how many there will be, from the table alone."""

import math
import pathlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.study import search
from experiments.study.arms import Arm
from experiments.study.claims import Claim
from experiments.study.results import Results, Tried
from experiments.study.search import Values
from experiments.study.table import Row

# Seconds of a run of each task on one core of a slow machine, before there are any.
_SECONDS = {
    "small": 45.0,
    "combined": 60.0,
    "medium": 150.0,
    "vit": 40.0,
    "resnet": 60.0,
    "sources": 150.0,
}


class Wanted(NamedTuple):
    """A run that can be made now.

    Attributes:
      name: of its claim and arm.
      arm: that it belongs to.
      fields: that it sets, beside the seed.
      seed: of it.
      key: that it is known by.
      norms: folder where its gradient norms are to be kept; empty: nowhere.
    """

    name: str
    arm: Arm
    fields: dict[str, Any]
    seed: int
    key: str
    norms: str = ""


def wanted(
    claims: Sequence[Claim],
    known: Mapping[str, Row],
    least: int,
    failed: Collection[str] = (),
) -> list[Wanted]:
    """The runs to make next, claim by claim until there are enough.

    Args:
      claims: in the order of their worth.
      known: the runs that there are, by key.
      least: how many are enough.
      failed: keys of runs that cannot be had.
    """
    found: dict[str, Wanted] = {}
    for claim in claims:
        results = Results(claim.trials, known)
        for tried in results.values():
            asked = [_wanted(claim, tried, *trial) for trial in tried.wanted]
            if asked and tried.norms and not pathlib.Path(tried.norms).exists():
                source = results[tried.arm.refines]
                again = _wanted(claim, source, source.best or (), 0)
                asked = [again._replace(norms=tried.norms)]
            for one in asked:
                if one.key not in failed:
                    found.setdefault(one.key, one)
        if len(found) >= least:
            break
    return list(found.values())


def _wanted(claim: Claim, tried: Tried, values: Values, seed: int) -> Wanted:
    name = f"{claim.name}, {tried.name}"
    return Wanted(name, tried.arm, tried.point(values), seed, tried.key(values, seed))


class Size(NamedTuple):
    """How much of a claim is done.

    Attributes:
      claim: its name.
      arms: how many it has.
      made: runs that there are.
      left: that are still to be made, without those that an earlier claim makes
        anyway. A best value at the edge of its grid will ask for some more.
      hours: of one core for those.
    """

    claim: str
    arms: int
    made: int
    left: int
    hours: float


def sizes(claims: Sequence[Claim], known: Mapping[str, Row]) -> list[Size]:
    """The size of each claim."""
    seen: set[str] = set()
    found = []
    for claim in claims:
        made = left = 0
        hours = 0.0
        for tried in Results(claim.trials, known).values():
            made += len(tried.rows)
            new = _left(tried) - seen
            seen |= new
            left += len(new)
            hours += len(new) * _seconds(tried, known) / 3600
        found.append(Size(claim.name, len(claim.trials), made, left, hours))
    return found


def counts(results: Results) -> tuple[int, int]:
    """How many runs of a claim there are, and about how many are missing."""
    left = [_left(tried) for tried in results.values()]
    return sum(len(tried.rows) for tried in results.values()), len(set().union(*left))


def _left(tried: Tried) -> set[str]:
    """Keys of the runs to come, if what is best now, or the centre, stays best."""
    found = set()
    losses = dict(tried.losses)
    worst = max((x for x in losses.values() if math.isfinite(x)), default=1.0)
    axes = tried.arm.search.axes
    while missing := search.wanted(tried.arm.search, losses):
        for values, seed in missing:
            off = sum(
                math.log(value / axis.center) ** 2
                for value, axis in zip(values, axes, strict=True)
            )
            losses[values, seed] = worst * (1 + off)
            found.add(tried.key(values, seed))
    return found


def _seconds(tried: Tried, known: Mapping[str, Row]) -> float:
    """Of a run: the mean of the arm's own, else of its task's, else a guess."""
    axes = tried.arm.search.axes
    shape = _shape(tried.point(tuple(axis.center for axis in axes)))
    rows = list(tried.rows.values()) or [
        row
        for row in known.values()
        if row.config == tried.arm.config and _shape(row.overrides) == shape
    ]
    times = [row.total_seconds for row in rows if row.total_seconds]
    return statistics.fmean(times) if times else _SECONDS[tried.arm.task]


def _shape(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide how long a step of any method takes, and how many."""
    sections = "task.", "model.", "train."
    return {x: value for x, value in fields.items() if x.startswith(sections)}
