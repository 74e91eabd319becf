"""What the names in a config choose, and the arguments that each choice has.

Names are looked up when a config is checked, so that a config file may register its
own first.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

import experiments
import optlab
from experiments import data, models, tasks
from experiments.arguments import Arguments, arguments_of
from experiments.errors import UserError, nearest
from experiments.schedules import SCHEDULES
from optlab.origins import file_of
from optlab.signatures import own_names

# A word of the command line: `no` before it, the field, and what is behind a `=`.
WORD = re.compile(r"--?(no)?config\.([^=]*)=?(.*)", re.S)

# Where the project's own factories are written.
_ROOTS = [
    pathlib.Path(os.path.realpath(x.__file__)).parent for x in (experiments, optlab)
]

# Arguments of an optimizer's factory that the runner gives by itself.
SUPPLIED = (
    "learning_rate",
    "adam_learning_rate",
    "weight_decay",
    "weight_decay_mask",
    "roles",
    "distribute",
)

# Section -> its fields whose choices have their arguments in the section's kwargs.
FIELDS = {
    "optimizer": ("optimizer.name",),
    "schedule": ("schedule.name",),
    "model": ("model.name",),
    "task": ("task.name", "task.data"),
}


class _Choices(NamedTuple):
    """Of one field: the names, what they stand for, and what others give to it."""

    names: Callable[[], Collection[str]]
    factory: Callable[[str], Callable[..., Any]]
    supplied: Collection[str] = ()


_CHOICES = {
    "optimizer.name": _Choices(
        optlab.registry.names, lambda x: optlab.registry.get(x).factory, SUPPLIED
    ),
    "schedule.name": _Choices(SCHEDULES.keys, SCHEDULES.__getitem__),
    "model.name": _Choices(
        models.MODELS.keys, lambda x: models.MODELS[x].factory, models.FIELDS
    ),
    "task.name": _Choices(tasks.TASKS.keys, tasks.TASKS.__getitem__),
    "task.data": _Choices(
        data.SOURCES.keys, lambda x: data.SOURCES[x].load, data.FIELDS
    ),
}


def not_allowed(field: str, value: Any, allowed: Collection[str]) -> UserError:
    """The error of a field that holds none of what is allowed."""
    near = nearest(str(value), allowed)
    return UserError(
        f"--config.{field}: given {value!r}, allowed {', '.join(allowed)}{near}"
    )


def names(field: str) -> Collection[str]:
    """What a field may choose; empty where it chooses nothing."""
    return _CHOICES[field].names() if field in _CHOICES else ()


def factory(field: str, name: str) -> Callable[..., Any]:
    """What a name in a field stands for.

    Raises:
      UserError: if there is no such name.
    """
    choices = _CHOICES[field]
    if name not in choices.names():
        raise not_allowed(field, name, choices.names())
    return choices.factory(name)


def arguments(field: str, name: str) -> Arguments:
    """The arguments of what a name stands for, as far as a config may set them.

    Raises:
      UserError: if there is no such name.
    """
    return arguments_of(factory(field, name), _CHOICES[field].supplied)


def own_files(config: ml_collections.ConfigDict) -> dict[str, dict[str, str]]:
    """What config.json has of the files beside this project that a config draws on.

    No commit of the project tells of them.

    Returns:
      `own_files`, the sha256 of each; {} if there are none.
    """
    fields = [field for section in FIELDS.values() for field in section]
    made = {file_of(factory(field, _value(config, field))) for field in fields}
    own = {}
    for path in sorted(made):
        inside = any(pathlib.Path(path).is_relative_to(root) for root in _ROOTS)
        if not inside and os.path.isfile(path):
            with open(path, "rb") as file:
                own[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"own_files": own} if own else {}


def section_arguments(config: ml_collections.ConfigDict, section: str) -> Arguments:
    """What the kwargs of a section may hold: the arguments of all that it chooses.

    Raises:
      UserError: if two of them have an argument of the same name.
    """
    by_name, is_open = {}, False
    for field in FIELDS[section]:
        found = arguments(field, _value(config, field))
        for name in by_name.keys() & found.by_name:
            raise UserError(
                f"--config.{section}.kwargs.{name}: an argument of two of "
                f"{', '.join(FIELDS[section])}"
            )
        by_name |= found.by_name
        is_open |= found.open
    return Arguments(by_name, is_open)


def fill_kwargs(config: ml_collections.ConfigDict, section: str) -> Arguments:
    """Sets a section's kwargs to the defaults of what it chooses.

    Returns:
      What the kwargs may hold.
    """
    found = section_arguments(config, section)
    kwargs = config[section].kwargs = ml_collections.ConfigDict()
    for name, argument in found.by_name.items():
        unset = argument.default is None
        value = config_dict.placeholder(argument.kind) if unset else argument.default
        kwargs[name] = value
    return found


def kept(
    config: ml_collections.ConfigDict, section: str, own: dict[str, Any], now: Any
) -> dict[str, Any]:
    """Those of a file's kwargs that go with the names which the command line chooses.

    Args:
      config: as the file has it.
      section: of it.
      own: kwargs of the file.
      now: names that the command line sets, by field.
    """
    names = {field: _value(config, field) for field in FIELDS[section]}
    same = [field for field in names if now.get(field, names[field]) == names[field]]
    if len(same) == len(names):
        return own
    mine = [arguments(field, names[field]) for field in same]
    return {
        name: value
        for name, value in own.items()
        if any(name in x.by_name or x.open for x in mine)
    }


def own_words(
    config: ml_collections.ConfigDict, kwargs: dict[str, Any], overrides: Sequence[str]
) -> list[str]:
    """The words of the command line, and the file's kwargs, under a method's own names.

    What some methods call `b1` is `momentum` to others, and each takes either name.

    Args:
      config: as the file has it.
      kwargs: of the file by section; the optimizer's are replaced.
      overrides: as on the command line.

    Raises:
      UserError: an argument is given under both names.
    """
    found = [WORD.match(word) for word in overrides]
    names = [match[3] for match in found if match[2] == "optimizer.name"]
    chosen = factory("optimizer.name", (names or [config.optimizer.name])[-1])
    inside = "optimizer.kwargs."
    given = {
        match[2].removeprefix(inside): match[3]
        for match in found
        if match[2].startswith(inside)
    }
    try:
        own_names(chosen, given)
        own = factory("optimizer.name", config.optimizer.name)
        kwargs["optimizer"] = own_names(own, kwargs["optimizer"])
    except ValueError as error:
        raise UserError(f"--config.optimizer.kwargs: {error}") from error
    known = getattr(chosen, "synonyms", {})
    fields = {inside + other: inside + name for other, name in known.items()}
    return [
        match[0].replace(match[2], fields.get(match[2], match[2]), 1) for match in found
    ]


def _value(config: ml_collections.ConfigDict, field: str) -> str:
    section, _, name = field.partition(".")
    return config[section][name]
