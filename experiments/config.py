"""A run's configuration: what it holds, how file and command line are read.

A config file's `get_config()` starts from `base()` and sets what it wants. `load` reads
the names of optimizer, schedule, model, task and data first, fills each section's
`kwargs` from the signatures that these names stand for, locks the result and parses the
overrides, so that a misspelt argument is an error like any other field.
"""

import copy
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from experiments import choices, schedules, wrappers
from experiments.arguments import literal
from experiments.errors import UserError, nearest, one_line
from experiments.fields import FIELDS
from experiments.models import MODELS
from experiments.python_files import load_python_config

# What float32 holds: on the device larger numbers would be infinite.
_LARGEST = 3.4e38


def base() -> ml_collections.ConfigDict:
    """Every field of `fields.FIELDS` at its default, and empty kwargs."""
    config = ml_collections.ConfigDict()
    for path, field in FIELDS.items():
        *parents, name = path.split(".")
        node = config
        for parent in parents:
            if parent not in node:
                node[parent] = ml_collections.ConfigDict()
            node = node[parent]
        is_type = isinstance(field.default, type)
        node[name] = (
            config_dict.placeholder(field.default) if is_type else field.default
        )
    for section in choices.FIELDS:
        config[section].kwargs = ml_collections.ConfigDict()
    return config


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by dotted path."""
    flat = {}
    for name in config:
        value = config[name]
        if isinstance(value, ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts the overrides (`--config.a.b=1`, `--config.a.b 1`) from all else."""
    overrides, rest = [], []
    words = iter(range(len(argv)))
    for i in words:
        word = argv[i]
        if not re.match(r"--?(no)?config\.", word):
            rest.append(word)
            continue
        follows = argv[i + 1] if i + 1 < len(argv) else "--"
        named = "=" in word or re.match(r"--?no", word)
        if not named and not re.match(r"-[-a-zA-Z]", follows):
            word = f"{word}={follows}"
            next(words)
        overrides.append(word)
    return overrides, rest


def load(
    path: str | None, overrides: Sequence[str] = ()
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """Reads a config file with overrides.

    Args:
      path: a Python file with `get_config()`; None: a config as `base` makes it.
      overrides: as on the command line, such as `--config.train.steps=100`.

    Returns:
      The locked config, and the values of the overridden fields by dotted path.

    Raises:
      UserError: naming the field, what was given and what is allowed.
    """
    config, kwargs = (
        _read(path) if path else (base(), {section: {} for section in choices.FIELDS})
    )
    words = choices.own_words(config, kwargs, overrides)
    given = [choices.WORD.match(word) for word in words]
    last = {match[2]: match[3] for match in given}
    for section in choices.FIELDS:
        _choose(config, section, kwargs[section], last)
    allowed = flatten(config)
    for field in last:
        if field not in allowed:
            raise UserError(_unknown(f"--config.{field}", field, allowed))
    may_be_none = {field for field in last if _may_be_none(config, field)}
    for field in may_be_none:
        if _is_none(last[field]):
            _assign(config, field, None)
    words = [
        match[0]
        for match in given
        if match[2] not in may_be_none or not _is_none(last[match[2]], match[3])
    ]
    config = _parsed(config, words)
    _expand_paths(config)
    _check(config)
    parsed = flatten(config)
    return config, {field: parsed[field] for field in last}


def _choose(
    config: ml_collections.ConfigDict,
    section: str,
    own: dict[str, Any],
    last: dict[str, str],
) -> None:
    """Sets a section's names, and its kwargs to what these names have.

    Args:
      config: as the file has it.
      section: of it.
      own: kwargs of the file, which belong to the file's own choice.
      last: words of the command line by field.

    Raises:
      UserError: if a name or an argument of the file is none.
    """
    own = choices.kept(config, section, own, last)
    for field in choices.FIELDS[section]:
        if field in last:
            place(config, field)[0][field.partition(".")[2]] = last[field]
    arguments = choices.fill_kwargs(config, section)
    kwargs, inside = config[section].kwargs, f"{section}.kwargs."
    words = {
        field.removeprefix(inside): literal(last[field])
        for field in last
        if field.startswith(inside)
    }
    for name, value in (own | words).items() if arguments.open else ():
        plain = isinstance(value, bool | int | float | str | tuple)
        if name not in kwargs and name.isidentifier() and plain:
            kwargs[name] = value
    for name, value in own.items():
        if name not in kwargs:
            raise UserError(_unknown(f"--config.{inside}{name}", name, kwargs))
        # The type of an argument without a signature is that of its last value.
        if name in arguments.by_name or name not in words:
            _assign(config, inside + name, value)


def _is_none(*values: str) -> bool:
    """Whether one of the words stands for no value."""
    return "none" in map(str.lower, values)


def _unknown(what: str, given: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    # Names of the same section are what was meant, or else the sections themselves.
    section = given.rpartition(".")[0]
    beside = [name for name in allowed if name.rpartition(".")[0] == section]
    shown = beside or sorted({name.partition(".")[0] for name in allowed})
    short = [name.removeprefix(f"{section}.") for name in shown]
    return f"{what}: no such field, allowed {', '.join(short)}{nearest(given, allowed)}"


def _read(
    path: str,
) -> tuple[ml_collections.ConfigDict, dict[str, dict[str, Any]]]:
    """The fields of a file with their types checked, and its kwargs by section."""
    found = load_python_config(path, "get_config", "--config")
    if not isinstance(found, ml_collections.ConfigDict):  # a frozen one is one too
        raise UserError(
            f"--config: get_config() of {path} returns no ConfigDict, but a "
            f"{type(found).__name__}"
        )
    try:
        given = flatten(found)
    except Exception as error:  # a required field without a value, a number as a name
        raise UserError(
            f"--config: get_config() of {path} returns fields that cannot be read: "
            f"{one_line(error)}"
        ) from error
    config, kwargs = base(), {}
    missing = sorted(set(flatten(config)) - set(given))
    if missing:
        raise UserError(f"--config: {path} lacks {', '.join(missing)}")
    for section in choices.FIELDS:
        inside = f"{section}.kwargs."
        names = [name for name in given if name.startswith(inside)]
        kwargs[section] = {name.removeprefix(inside): given.pop(name) for name in names}
    for field, value in given.items():
        if field not in FIELDS:
            raise UserError(_unknown(f"--config: {path}: {field}", field, FIELDS))
        _assign(config, field, value, f"--config: {path}: ")
    return config, kwargs


def place(
    config: ml_collections.ConfigDict, field: str
) -> tuple[ml_collections.ConfigDict, str]:
    """The section that holds a field, and the field's name there."""
    *parents, name = field.split(".")
    for parent in parents:
        config = config[parent]
    return config, name


def _assign(
    config: ml_collections.ConfigDict, field: str, value: Any, where: str = "--config."
) -> None:
    """Sets a field to a value of its type.

    Raises:
      UserError: if the value has another type.
    """
    section, name = place(config, field)
    wanted = section.get_type(name)
    # For Python True is an integer, and for ml_collections None is anything.
    wrong = isinstance(value, bool) and wanted is not bool
    wrong |= value is None and not _may_be_none(config, field)
    try:
        if not wrong:
            section[name] = value
            return
    except (TypeError, ValueError):  # a value that contains itself
        pass
    raise UserError(f"{where}{field}: given {value!r}, allowed {wanted.__name__}")


def default_kwargs(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the kwargs are where neither file nor command line sets them."""
    plain = config.copy_and_resolve_references().unlock()
    for section in choices.FIELDS:
        choices.fill_kwargs(plain, section)
    flat = flatten(plain)
    return {field: flat[field] for field in flat if ".kwargs." in field}


def _may_be_none(config: ml_collections.ConfigDict, field: str) -> bool:
    """Whether a field has no value where none is given."""
    if field in FIELDS:
        return isinstance(FIELDS[field].default, type)
    section, inside, argument = field.partition(".kwargs.")
    if not inside or argument not in config[section].kwargs:
        return False
    argument = choices.section_arguments(config, section).by_name.get(argument)
    return argument is not None and argument.default is None


def _parsed(
    config: ml_collections.ConfigDict, words: Sequence[str]
) -> ml_collections.ConfigDict:
    """The config, locked, with what the words set."""
    try:
        return _parsed_by_absl(config, words)
    except Exception as error:  # the parsers of the types raise what they like
        for word in words:
            try:
                _parsed_by_absl(config, [word])
            except Exception:
                field, _, value = word.partition("config.")[2].partition("=")
                section, name = place(config, field)
                kind = section.get_type(name).__name__
                raise UserError(
                    f"--config.{field}: given {value!r}, allowed {kind}"
                ) from error
        raise UserError(f"--config: {one_line(error)}") from error


def _parsed_by_absl(
    config: ml_collections.ConfigDict, words: Sequence[str]
) -> ml_collections.ConfigDict:
    config, words = copy.deepcopy(config), ["", *words]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=words
    )
    values(words)
    return values.config


def _expand_paths(config: ml_collections.ConfigDict) -> None:
    for path, field in FIELDS.items():
        section, name = place(config, path)
        if field.is_path and section[name] is not None:
            section[name] = os.path.expanduser(section[name])


def _check(config: ml_collections.ConfigDict) -> None:
    flat = flatten(config)
    for path, field in FIELDS.items():
        value = flat[path]
        if value is None:
            continue
        if field.choices and value not in field.choices:
            raise choices.not_allowed(path, value, field.choices)
        if isinstance(value, float) and not abs(value) <= _LARGEST:
            raise UserError(f"--config.{path}: given {value}, allowed a finite number")
        if field.positive and value <= 0:
            raise UserError(f"--config.{path}: given {value}, allowed above 0")
        if field.low is not None and value < field.low:
            raise UserError(
                f"--config.{path}: given {value}, allowed {field.low} or more"
            )
        if field.high is not None and value > field.high:
            raise UserError(
                f"--config.{path}: given {value}, allowed {field.high} or less"
            )
        _check_only(flat, path)
    for path, value in flat.items():
        # Infinite is what switches some limits off.
        is_limit = isinstance(value, float) and math.isinf(value)
        if isinstance(value, float) and not (abs(value) <= _LARGEST or is_limit):
            raise UserError(
                f"--config.{path}: given {value}, allowed what float32 holds"
            )
    wrappers.parse(config.optimizer.wrappers)
    _check_size(config)
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"--config.train.accumulate: given {config.train.accumulate}, allowed a "
            f"divisor of train.batch_size={config.train.batch_size}"
        )
    if config.task.eval_windows % 32:
        raise UserError(
            f"--config.task.eval_windows: given {config.task.eval_windows}, "
            "allowed a multiple of 32"
        )
    _check_schedule(config)


def _check_only(flat: dict[str, Any], path: str) -> None:
    """Refuses a value that nothing would come of, by what another field is."""
    field = FIELDS[path]
    is_default = not isinstance(field.default, type) and flat[path] == field.default
    if not field.only or is_default:
        return
    other, *values = field.only
    if flat[other] in values or (flat[other] and not values):
        return
    needed = f"{other}={' or '.join(values)}" if values else other
    raise UserError(f"--config.{path}: only with {needed}")


def _check_size(config: ml_collections.ConfigDict) -> None:
    sizes, size = MODELS[config.model.name].sizes, config.model.size
    if sizes and size not in sizes:
        raise choices.not_allowed("model.size", size, sizes)
    if not sizes and size != FIELDS["model.size"].default:
        raise UserError(
            f"--config.model.size: given {size!r}, model.name={config.model.name} has "
            "none"
        )


def _check_schedule(config: ml_collections.ConfigDict) -> None:
    try:
        schedules.make_schedule(config)
    except (ValueError, TypeError) as error:
        said = one_line(error)
        name = said.partition(" ")[0].rstrip(":")
        inside = "kwargs." if name in config.schedule.kwargs else "name: "
        raise UserError(f"--config.schedule.{inside}{said}") from error
