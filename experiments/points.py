"""The points of a sweep: what its file asks for, as runs with a folder each."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments import choices, parts
from experiments import config as configs
from experiments.errors import UserError
from experiments.parts import Part


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder, a hash of base config and overrides.
      part: that it belongs to.
      words: the overrides as on the command line.
      overrides: field -> value, as the config parsed them.
      config: the whole config.
    """

    name: str
    part: Part
    words: tuple[str, ...]
    overrides: dict[str, Any]
    config: ml_collections.ConfigDict

    def label(self) -> str:
        """What tells the point from the others of its part."""
        shown = [
            f"{field.rpartition('.')[2]}={_short(self.overrides[field])}"
            for field in _varied(self.part)
        ]
        return ", ".join([*([self.part.name] if self.part.name else []), *shown])


def load(path: str, overrides: Sequence[str] = ()) -> list[Point]:
    """Reads a sweep file, and the config of each of its points.

    Args:
      path: a Python file with `get_sweep()`.
      overrides: more words for every point, such as `--config.train.steps=100`, of
        fields that no part varies.

    Returns:
      The points in their order, none twice.

    Raises:
      UserError: naming what is wrong, before anything has run.
    """
    points: dict[str, Point] = {}
    given = {choices.WORD.match(word)[2] for word in overrides}
    for part in parts.read(path):
        for field in sorted(given.intersection(_varied(part))):
            raise UserError(
                f"--config.{field}: the sweep gives it several values, allowed fields "
                "that all its points have in common"
            )
        for values in _DESIGNS[part.design](part):
            for seed in part.seeds:
                fields = part.overrides | values | {"seed": seed}
                words = [f"--config.{field}={fields[field]}" for field in fields]
                point = make(part, (*words, *overrides))
                points.setdefault(point.name, point)
    if not points:
        raise UserError(f"--sweep: {path} has no points")
    return list(points.values())


def make(part: Part, words: tuple[str, ...]) -> Point:
    """The point of a part that these words ask for.

    Raises:
      UserError: naming the field, what was given and what is allowed.
    """
    try:
        config, changed = configs.load(part.config, words)
    except UserError as error:
        varied = [f"--config.{field}=" for field in part.axes]
        own = [word for word in words if word.startswith(tuple(varied))]
        where = f" (in the point {' '.join(own)})" if own else ""
        raise UserError(f"{error}{where}") from error
    # The same form whichever way the values were written.
    identity = json.dumps([part.config, changed], sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return Point(name, part, words, changed, config)


def _varied(part: Part) -> list[str]:
    """The fields that have several values in a part."""
    return [*part.axes, *(["seed"] if len(part.seeds) > 1 else [])]


def _grid(part: Part) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*part.axes.values()):
        yield dict(zip(part.axes, values, strict=True))


def _one_at_a_time(part: Part) -> Iterator[dict[str, Any]]:
    words = [f"--config.{field}={value}" for field, value in part.overrides.items()]
    flat = configs.flatten(configs.load(part.config, words)[0])
    # A field that there is not is told when its point is made.
    center = {field: flat.get(field) for field in part.axes}
    yield center
    for field, values in part.axes.items():
        for value in values:
            yield center | {field: value}


def _halton(part: Part) -> Iterator[dict[str, Any]]:
    """Halton's sequence, without its first point, which is a corner."""
    from scipy.stats import qmc

    sampler = qmc.Halton(max(len(part.axes), 1), scramble=False)
    for places in sampler.fast_forward(1 + part.skip).random(part.trials):
        yield {
            field: _at(place, axis)
            for place, (field, axis) in zip(places, part.axes.items(), strict=True)
        }


def _at(place: float, axis: Sequence[Any]) -> Any:
    """The value at a place of [0, 1) along an axis."""
    if len(axis) == 3 and axis[2] in parts.SCALES:
        low, high, scale = axis
        if scale == "linear":
            return float(low + place * (high - low))
        return math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
    return axis[int(place * len(axis))]


_DESIGNS: dict[str, Callable[[Part], Iterator[dict[str, Any]]]] = {
    "grid": _grid,
    "one_at_a_time": _one_at_a_time,
    "halton": _halton,
}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
