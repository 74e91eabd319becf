"""The points of a sweep: what its file asks for, as runs with a folder each.

A sweep file's `get_sweep()` returns one part or a list of parts, dictionaries with

    config      the base config's path
    overrides   fields that all points of the part have in common
    axes        field -> values; with `halton` also (low, high, "log" or "linear")
    design      "grid" (every combination), "one_at_a_time" (each axis alone, the others
                as config and overrides have them) or "halton"
    trials      how many points of `halton`, after the `skip` first ones
    seeds       every point runs with each of them
    pruning     {"first": steps, "factor": f}: by successive halving (ASHA) only one of
                f points goes on past `first` steps, f times that, and so on, judged by
                the validation loss; off if not given, as sensitivity needs all points.
                Not with `--launcher=inline`
    name        of the part, where there are several

All but `config` may be left out.
"""

import hashlib
import importlib.util
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
from scipy.stats import qmc

from experiments import config as configs
from experiments.config import UserError, nearest


class Part(NamedTuple):
    """One study: points that share a base config and axes."""

    config: str
    overrides: dict[str, Any] = {}  # noqa: RUF012
    axes: dict[str, Sequence[Any]] = {}  # noqa: RUF012
    design: str = "grid"
    trials: int = 0
    skip: int = 0
    seeds: Sequence[int] = (0,)
    pruning: dict[str, int] | None = None
    name: str = ""


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
        varied = [*self.part.axes, *(("seed",) if len(self.part.seeds) > 1 else ())]
        shown = [
            f"{field.rpartition('.')[2]}={_short(self.overrides[field])}"
            for field in varied
        ]
        return ", ".join([*([self.part.name] if self.part.name else []), *shown])


def load(path: str, overrides: Sequence[str] = ()) -> list[Point]:
    """Reads a sweep file, and the config of each of its points.

    Args:
      path: a Python file with `get_sweep()`.
      overrides: more words for every point, such as `--config.train.steps=100`.

    Returns:
      The points in their order, none twice.

    Raises:
      UserError: naming what is wrong, before anything has run.
    """
    points: dict[str, Point] = {}
    for part in _parts(path):
        for values in _DESIGNS[part.design](part):
            for seed in part.seeds:
                fields = part.overrides | values | {"seed": seed}
                words = [f"--config.{field}={fields[field]}" for field in fields]
                point = _point(part, (*words, *overrides))
                points.setdefault(point.name, point)
    if not points:
        raise UserError(f"--sweep: {path} has no points")
    return list(points.values())


def _point(part: Part, words: tuple[str, ...]) -> Point:
    config, changed = configs.load(part.config, words)
    # The same form whichever way the values were written.
    identity = json.dumps([part.config, changed], sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return Point(name, part, words, changed, config)


def _parts(path: str) -> list[Part]:
    file = pathlib.Path(path)
    if not file.is_file():
        known = [str(found) for found in pathlib.Path("configs/sweeps").glob("*.py")]
        raise UserError(f"--sweep: no file {path!r}{nearest(path, known)}")
    spec = importlib.util.spec_from_file_location("sweep_file", file)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        given = module.get_sweep()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"--sweep: {path} does not load, {reason}") from error
    parts = given if isinstance(given, list) else [given]
    checked = []
    for number, fields in enumerate(parts):
        for field in fields:
            if field not in Part._fields:
                raise UserError(
                    f"--sweep: {field}: no such field, allowed "
                    f"{', '.join(Part._fields)}{nearest(field, Part._fields)}"
                )
        if "config" not in fields:
            raise UserError(f"--sweep: config: missing in part {number} of {path}")
        part = Part(**fields)
        if part.design not in _DESIGNS:
            raise UserError(
                f"--sweep: design: given {part.design!r}, allowed "
                f"{', '.join(_DESIGNS)}{nearest(part.design, _DESIGNS)}"
            )
        if part.pruning is not None and set(part.pruning) != {"first", "factor"}:
            raise UserError(
                f"--sweep: pruning: given {part.pruning}, allowed first and factor"
            )
        checked.append(part)
    names = [part.name for part in checked]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--sweep: name: {len(names)} parts need one each")
    return checked


def _grid(part: Part) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*part.axes.values()):
        yield dict(zip(part.axes, values, strict=True))


def _one_at_a_time(part: Part) -> Iterator[dict[str, Any]]:
    words = [f"--config.{field}={value}" for field, value in part.overrides.items()]
    flat = configs.flatten(configs.load(part.config, words)[0])
    for field in part.axes:
        if flat.get(field) is None:
            raise UserError(
                f"--sweep: axes: {field} has no value to vary the others about"
            )
    center = {field: flat[field] for field in part.axes}
    yield center
    for field, values in part.axes.items():
        for value in values:
            yield center | {field: value}


def _halton(part: Part) -> Iterator[dict[str, Any]]:
    """Halton's sequence, without its first point, which is a corner."""
    if part.trials < 1:
        raise UserError(f"--sweep: trials: given {part.trials}, allowed 1 or more")
    sampler = qmc.Halton(max(len(part.axes), 1), scramble=False)
    for places in sampler.fast_forward(1 + part.skip).random(part.trials):
        yield {
            field: _at(place, axis)
            for place, (field, axis) in zip(places, part.axes.items(), strict=True)
        }


def _at(place: float, axis: Sequence[Any]) -> Any:
    """The value at a place of [0, 1) along an axis."""
    if len(axis) == 3 and axis[2] in ("log", "linear"):
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
