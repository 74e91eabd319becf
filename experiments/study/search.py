"""Which trials an arm of a claim needs next, from the losses of those it has had.

Axis by axis, in their order: values a factor apart about a centre, with one seed, and
more on the side where the best lies until it has a neighbour on both; the axis then
stays at its best. At the end the first axes may be moved once more, alone and together,
since rates of different leaves depend on each other. The other seeds come last, at the
best trial and at the second best if that is close. Nothing but the losses decides, so
that a search goes on from a table of runs as if it had never stopped.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Values = tuple[float, ...]
Losses = Mapping[tuple[Values, int], float]

# A second best whose loss is higher by less than this share gets all seeds too.
_CLOSE = 0.005
_DIGITS = 4
# How often the first axes may move at the end.
_MOVES = 8


class Axis(NamedTuple):
    """Values that are tried for a field.

    Attributes:
      field: of the config.
      center: the value to begin about.
      factor: from each value to the next.
      start: how many values there are at first.
      most: how many there may be.
      values: all that are tried, in the place of a grid.
    """

    field: str
    center: float
    factor: float = 2.0
    start: int = 3
    most: int = 6
    values: tuple[float, ...] = ()

    def first(self) -> list[int]:
        """The places to begin with: of an even number one more above the centre."""
        if self.values:
            return list(range(len(self.values)))
        low = -((self.start - 1) // 2)
        return list(range(low, low + self.start))

    def value(self, place: int) -> float:
        """The value `place` factors above the centre, or at a place of the list."""
        if self.values:
            return self.values[place]
        return float(f"{self.center * self.factor**place:.{_DIGITS}g}")

    def moved(self, value: float, places: int) -> float:
        """The value some places above one of the grid, or below for negative places."""
        place = round(math.log(value / self.center, self.factor))
        return self.value(place + places)


class Search(NamedTuple):
    """What is tried for an arm.

    Attributes:
      axes: in the order of their tuning.
      seeds: how many the best trial gets.
      everywhere: whether all trials get all seeds.
      together: how many of the first axes move once more at the end, until no
        neighbour is better; they are grids.
    """

    axes: tuple[Axis, ...]
    seeds: int = 3
    everywhere: bool = False
    together: int = 0


def wanted(search: Search, losses: Losses) -> list[tuple[Values, int]]:
    """The trials, values and seed, that can be made now; none if the search is over.

    Args:
      search: of the arm.
      losses: of the trials that have ended, infinite where one diverged.
    """
    missing, tried, _ = _walk(search, losses)
    if missing:
        return [(values, 0) for values in missing]
    full = tried if search.everywhere else _contenders(tried, losses)
    return [
        (values, seed)
        for seed in range(search.seeds)
        for values in full
        if (values, seed) not in losses
    ]


def best(search: Search, losses: Losses) -> Values | None:
    """The trial of the lowest mean over all seeds, or with seed 0 where none has all.

    None before the first trial has ended.
    """
    _, tried, _ = _walk(search, losses)
    ended = [values for values in tried if (values, 0) in losses]
    seeds = range(search.seeds)
    whole = [v for v in ended if all((v, seed) in losses for seed in seeds)]
    if whole:
        return min(whole, key=lambda v: (sum(losses[v, s] for s in seeds), v))
    return min(ended, key=lambda v: (losses[v, 0], v)) if ended else None


def edges(search: Search, losses: Losses) -> dict[str, str]:
    """Field -> `lowest` or `highest`, where an axis ended with its best at an edge."""
    return _walk(search, losses)[2]


def _walk(
    search: Search, losses: Losses
) -> tuple[list[Values], list[Values], dict[str, str]]:
    """The trials that the walk waits for, all that it has come by, and the edges."""
    values = tuple(axis.center for axis in search.axes)
    tried: list[Values] = [] if search.axes else [values]
    at_edge: dict[str, str] = {}
    for i, axis in enumerate(search.axes):
        places = axis.first()
        while True:
            line = [_with(values, i, axis.value(place)) for place in places]
            tried += [trial for trial in line if trial not in tried]
            missing = [trial for trial in line if (trial, 0) not in losses]
            if missing:
                return missing, tried, at_edge
            lowest = min(line, key=lambda trial: losses[trial, 0])
            edge = {line[0]: -1, line[-1]: 1}.get(lowest, 0)
            if not edge or axis.values or len(places) >= axis.most:
                break
            new = places[0] - 1 if edge < 0 else places[-1] + 1
            places = sorted([*places, new])
        if edge and len(line) > 1 and not axis.values:
            at_edge[axis.field] = "lowest" if edge < 0 else "highest"
        values = lowest
    if search.together:
        return _move(search, values, losses, tried, at_edge)
    missing = [values] if not search.axes and (values, 0) not in losses else []
    return missing, tried, at_edge


def _move(
    search: Search,
    values: Values,
    losses: Losses,
    tried: list[Values],
    at_edge: dict[str, str],
) -> tuple[list[Values], list[Values], dict[str, str]]:
    """The end of a walk: to the best neighbour, until none is better."""
    axes = search.axes[: search.together]
    others = {axis.field for axis in search.axes[search.together :]}
    at_edge = {name: edge for name, edge in at_edge.items() if name in others}
    went: dict[str, str] = {}
    for _ in range(_MOVES):
        near = _neighbours(axes, values)
        tried += [trial for trial in near if trial not in tried]
        missing = [trial for trial in near if (trial, 0) not in losses]
        if missing:
            return missing, tried, at_edge
        lowest = min((values, *near), key=lambda trial: losses[trial, 0])
        if lowest == values:
            return [], tried, at_edge
        went = {
            axis.field: "lowest" if new < old else "highest"
            for axis, old, new in zip(axes, values, lowest, strict=False)
            if new != old
        }
        values = lowest
    return [], tried, at_edge | went


def _neighbours(axes: Sequence[Axis], values: Values) -> list[Values]:
    """One place down or up along each of some axes, in the same direction."""
    found = []
    for steps in itertools.product((0, 1), repeat=len(axes)):
        for sign in (-1, 1) if any(steps) else ():
            pairs = zip(axes, values, steps, strict=False)
            new = (axis.moved(value, sign * step) for axis, value, step in pairs)
            found.append((*new, *values[len(axes) :]))
    return found


def _with(values: Values, place: int, value: float) -> Values:
    return (*values[:place], value, *values[place + 1 :])


def _contenders(tried: Sequence[Values], losses: Losses) -> list[Values]:
    """The best trial, and the second best if it is close."""
    ranked = sorted(tried, key=lambda values: (losses[values, 0], values))
    first = losses[ranked[0], 0]
    limit = first + _CLOSE * abs(first)
    return [v for v in ranked[:2] if v == ranked[0] or losses[v, 0] <= limit]
