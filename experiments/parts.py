"""What a sweep file asks for, read and checked before anything else is done.

A sweep file's `get_sweep()` returns one part or a list of parts, dictionaries with the
keys of `KEYS`. All but `config` may be left out. A value may be None where a field may
be.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UserError, nearest
from experiments.python_files import load_python_config

# What each key of a part holds, for `--help` and the documentation.
KEYS = {
    "config": "the base config's path",
    "overrides": (
        "field -> value: what all points of the part have in common; a field of an "
        "axis has a value here only with one_at_a_time"
    ),
    "axes": 'field -> values; with halton also (low, high, "log" or "linear")',
    "design": (
        "grid (every combination, the default), one_at_a_time (each axis alone, the "
        "others as config and overrides have them) or halton (points that fill the "
        "axes evenly)"
    ),
    "trials": "how many points of halton, and of no other design",
    "skip": "how many of halton's first points are left out",
    "seeds": "every point runs with each of them; [0] by default",
    "pruning": (
        '{"first": steps, "factor": f}: by successive halving (ASHA) only one of f '
        "points goes on past `first` steps, f times that, and so on, judged by the "
        "validation loss; off by default, as sensitivity needs all points. Not with "
        "--launcher=inline"
    ),
    "name": "of the part, where there are several",
}
DESIGNS = ("grid", "one_at_a_time", "halton")
SCALES = ("log", "linear")
# More runs than anyone sweeps over; beyond it lie slips of the finger.
_MOST_POINTS = 10_000
_MOST_SKIPPED = 1_000_000
_LARGEST_INTEGER = 2**63 - 1


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

    def count(self) -> int:
        """How many points it has at most."""
        sizes = [len(values) for values in self.axes.values()]
        of_design = {
            "grid": math.prod(sizes),
            "one_at_a_time": 1 + sum(sizes),
            "halton": self.trials,
        }
        return of_design[self.design] * len(self.seeds)


class _Wrong(Exception):
    """What is wrong with a value: what is allowed instead."""


def read(path: str) -> list[Part]:
    """The parts that a sweep file asks for.

    Raises:
      UserError: one line that names the field, what was given and what is allowed.
    """
    given = load_python_config(path, "get_sweep", "--sweep")
    several = isinstance(given, list | tuple)
    parts = [
        _part(fields, path, f"part {number}: " if several else "")
        for number, fields in enumerate(given if several else [given])
    ]
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--sweep: name: {len(names)} parts need one each")
    total = sum(part.count() for part in parts)
    if total > _MOST_POINTS:
        raise UserError(
            f"--sweep: {path} has {total} points, allowed {_MOST_POINTS} or fewer"
        )
    return parts


def _part(given: Any, path: str, where: str) -> Part:
    if not isinstance(given, dict):
        raise UserError(
            f"--sweep: get_sweep() of {path} returns {where}{_shown(given)}, "
            "allowed a dictionary or a list of them"
        )
    for field in given:
        if field not in Part._fields:
            raise UserError(
                f"--sweep: {where}{_word(field)}: no such field, allowed "
                f"{', '.join(Part._fields)}{nearest(str(field), Part._fields)}"
            )
    if "config" not in given:
        raise UserError(f"--sweep: {where}config: missing in {path}")
    checked = {}
    checks = _CHECKS
    # The axes last: what they may hold depends on the design.
    for field in sorted(given, key=lambda field: field == "axes"):
        if checked.get("design") == "halton":
            checks = _CHECKS | {"axes": _ranges}
        try:
            checked[field] = checks[field](given[field])
        except _Wrong as wrong:
            shown = _shown(given[field])
            raise UserError(
                f"--sweep: {where}{field}: given {shown}, {wrong}"
            ) from None
    part = Part(**checked)
    if part.design == "halton" and part.trials < 1:
        raise UserError(
            f"--sweep: {where}trials: given {part.trials}, allowed 1 or more"
        )
    for field in ("trials", "skip"):
        if part.design != "halton" and getattr(part, field):
            raise UserError(
                f"--sweep: {where}{field}: only with design halton, and design is "
                f"{part.design}"
            )
    both = part.axes.keys() & part.overrides.keys()
    if both and part.design != "one_at_a_time":
        raise UserError(
            f"--sweep: {where}overrides: {min(both)} is a field of axes too, allowed "
            "in one of them"
        )
    return part


def _shown(value: Any) -> str:
    """A value in so many characters as a line has room for."""
    try:
        text = repr(value)
    except Exception:  # of whatever object a file may make
        text = f"a {type(value).__name__}"
    text = "".join(x if x.isprintable() else " " for x in text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else _shown(value)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _Wrong("allowed a string of printable characters")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise _Wrong("allowed the path of a config file")
    return _text(str(value))


def _design(value: Any) -> str:
    if not isinstance(value, str) or value not in DESIGNS:
        near = nearest(str(value), DESIGNS)
        raise _Wrong(f"allowed {', '.join(DESIGNS)}{near}")
    return value


def _integer(low: int, high: int = _LARGEST_INTEGER) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        value = _plain(value)
        if type(value) is not int or not low <= value <= high:
            above = "or more" if high == _LARGEST_INTEGER else f"to {high}"
            raise _Wrong(f"allowed an integer, {low} {above}")
        return value

    return check


def _sequence(value: Any) -> list[Any]:
    value = _plain(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _Wrong("allowed a list")
    if len(value) > _MOST_POINTS:
        raise _Wrong(f"allowed {_MOST_POINTS} values or fewer")
    return list(value)


def _seeds(value: Any) -> list[int]:
    try:
        return [_integer(0)(seed) for seed in _sequence(value)]
    except _Wrong:
        raise _Wrong("allowed a list of integers, 0 or more") from None


def _value(value: Any) -> Any:
    """The value of a config's field."""
    value = _plain(value)
    if isinstance(value, list | tuple):
        return tuple(_value(item) for item in value)
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, bool | int | float | None):
        raise _Wrong(f"{_shown(value)} is no number, string, bool, None or tuple")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Wrong(f"{value} is not finite")
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise _Wrong(f"{_shown(value)} is beyond 64 bits")
    return value


def _fields(value: Any, check: Callable[[Any], Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _Wrong("allowed a dictionary by field")
    checked = {}
    for field, inner in value.items():
        if not isinstance(field, str) or not field.isprintable() or "=" in field:
            raise _Wrong(f"{_shown(field)} is no field")
        if field == "seed":
            raise _Wrong("what seed is belongs to seeds, a list")
        try:
            checked[field] = check(inner)
        except _Wrong as wrong:
            raise _Wrong(f"{field}: {wrong}") from None
    return checked


def _overrides(value: Any) -> dict[str, Any]:
    return _fields(value, _value)


def _axes(value: Any) -> dict[str, list[Any]]:
    return _fields(value, _values)


def _values(value: Any) -> list[Any]:
    values = [_value(item) for item in _sequence(value)]
    if _is_range(values) and values[2] in SCALES:
        raise _Wrong("(low, high, scale) needs design halton")
    return values


def _ranges(value: Any) -> dict[str, list[Any]]:
    return _fields(value, _range)


def _range(value: Any) -> list[Any]:
    """Values to choose from, or (low, high, scale)."""
    values = [_value(item) for item in _sequence(value)]
    if not values:
        raise _Wrong("allowed values, or (low, high, scale)")
    if not _is_range(values):
        return values
    low, high, scale = values
    if scale not in SCALES:
        raise _Wrong(f"{scale!r} is no scale, allowed {', '.join(SCALES)}")
    if not low < high or (scale == "log" and low <= 0):
        raise _Wrong("allowed low below high, and above 0 with log")
    if not math.isfinite(float(high) - float(low)):
        raise _Wrong("allowed a range that a float holds")
    return values


def _is_range(values: list[Any]) -> bool:
    numbers = [type(item) in (int, float) for item in values[:2]]
    return len(values) == 3 and all(numbers) and isinstance(values[2], str)


def _pruning(value: Any) -> dict[str, int] | None:
    if value is None:
        return None
    try:
        first, factor = _integer(1)(value["first"]), _integer(2)(value["factor"])
        if len(value) == 2:
            return {"first": first, "factor": factor}
    except (_Wrong, LookupError, TypeError):
        pass
    raise _Wrong("allowed first, an integer of 1 or more, and factor, of 2 or more")


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "config": _path,
    "overrides": _overrides,
    "axes": _axes,
    "design": _design,
    "trials": _integer(0, _MOST_POINTS),
    "skip": _integer(0, _MOST_SKIPPED),
    "seeds": _seeds,
    "pruning": _pruning,
    "name": _text,
}
