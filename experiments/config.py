"""A run's configuration: what it holds, how file and command line are read.

A config file's `get_config()` starts from `base()` and sets what it wants. `load` reads
the names of optimizer and schedule first, fills `optimizer.kwargs` and
`schedule.kwargs` from the signatures that these names stand for, locks the result and
parses the overrides, so that a misspelt argument is an error like any other field.
"""

import copy
import inspect
import math
import os
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

import optlab
from experiments.errors import UserError, nearest, one_line
from experiments.fields import FIELDS
from experiments.models import MODELS
from experiments.python_files import load_python_config
from experiments.trainer.optimizer import SCHEDULES, SUPPLIED

# The kwargs beside these names are filled from the signatures of what they stand for.
_NAMES = ("optimizer.name", "schedule.name")
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
    for path in _NAMES:
        place(config, path)[0].kwargs = ml_collections.ConfigDict()
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
    path: str, overrides: Sequence[str] = ()
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """Reads a config file with overrides.

    Args:
      path: a Python file with `get_config()`.
      overrides: as on the command line, such as `--config.train.steps=100`.

    Returns:
      The locked config, and the values of the overridden fields by dotted path.

    Raises:
      UserError: naming the field, what was given and what is allowed.
    """
    config, kwargs = _read(path)
    given = [
        re.match(r"--?(no)?config\.([^=]*)=?(.*)", word, re.S) for word in overrides
    ]
    last = {match[2]: match[3] for match in given}
    for field in _NAMES:
        section, _ = place(config, field)
        name = last.get(field, section.name)
        # The file's own kwargs belong to the file's own choice.
        own = kwargs[field] if name == section.name else {}
        section.name = name
        _fill_kwargs(config, field, own)
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


def _is_none(*values: str) -> bool:
    """Whether one of the words stands for no value."""
    return "none" in map(str.lower, values)


def describe() -> str:
    """The table of all fields, for `--help`."""
    lines = []
    for path, field in FIELDS.items():
        start = "None" if isinstance(field.default, type) else field.default
        among = f" ({', '.join(field.choices)})" if len(field.choices) > 1 else ""
        lines.append(f"  --config.{path}={start}\n      {field.help}{among}")
    for path in _NAMES:
        section = path.split(".")[0]
        lines.append(
            f"  --config.{section}.kwargs.*\n      the arguments of the {section}"
        )
    lines.append(f"  optimizers: {', '.join(optlab.registry.names())}")
    return "\n".join(lines)


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
    """The fields of a file with their types checked, and its kwargs by `_NAMES`."""
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
    for field in _NAMES:
        inside = field.replace("name", "kwargs.")
        names = [name for name in given if name.startswith(inside)]
        kwargs[field] = {name.removeprefix(inside): given.pop(name) for name in names}
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


def _parameters(field: str, name: str) -> dict[str, inspect.Parameter]:
    """The arguments that the named factory leaves to the config."""
    if field == "optimizer.name":
        try:
            factory = optlab.registry.get(name).factory
        except ValueError as error:
            raise UserError(f"--config.{field}: {error}") from error
    elif name in SCHEDULES:
        factory = SCHEDULES[name]
    else:
        raise UserError(_not_allowed(field, name, SCHEDULES))
    return {
        parameter.name: parameter
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.name not in SUPPLIED and parameter.default is not parameter.empty
    }


def default_kwargs(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the kwargs are where neither file nor command line sets them."""
    plain = config.copy_and_resolve_references().unlock()
    for field in _NAMES:
        _fill_kwargs(plain, field, {})
    flat = flatten(plain)
    return {field: flat[field] for field in flat if ".kwargs." in field}


def _may_be_none(config: ml_collections.ConfigDict, field: str) -> bool:
    """Whether a field has no value where none is given."""
    if field in FIELDS:
        return isinstance(FIELDS[field].default, type)
    section, inside, argument = field.partition(".kwargs.")
    if not inside or argument not in config[section].kwargs:
        return False
    parameters = _parameters(f"{section}.name", config[section].name)
    return parameters[argument].default is None


def _fill_kwargs(
    config: ml_collections.ConfigDict, field: str, own: dict[str, Any]
) -> None:
    """Sets the arguments of what a field names: to their defaults, or the file's."""
    section, _ = place(config, field)
    section.kwargs = ml_collections.ConfigDict()
    for name, parameter in _parameters(field, section.name).items():
        default = parameter.default
        if default is None:
            section.kwargs[name] = config_dict.placeholder(_type_of(parameter))
        elif isinstance(default, (bool, int, float, str, tuple)):
            section.kwargs[name] = default
    for name, value in own.items():
        path = field.replace("name", f"kwargs.{name}")
        if name not in section.kwargs:
            raise UserError(_unknown(f"--config.{path}", name, section.kwargs))
        _assign(config, path, value)


def _type_of(parameter: inspect.Parameter) -> type:
    """The type that an argument with default None takes when it is given."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        words = re.findall(r"\w+", annotation)
    else:
        members = typing.get_args(annotation) or (annotation,)
        words = [getattr(member, "__name__", "") for member in members]
    for kind in (float, int, str):
        if kind.__name__ in words:
            return kind
    return float if parameter.name.endswith(("rate", "decay")) else str


def _not_allowed(path: str, value: Any, choices: Iterable[str]) -> str:
    near = nearest(str(value), choices)
    return f"--config.{path}: given {value!r}, allowed {', '.join(choices)}{near}"


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
            raise UserError(_not_allowed(path, value, field.choices))
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
    for path, value in flat.items():
        # Infinite is what switches some limits off.
        is_limit = isinstance(value, float) and math.isinf(value)
        if isinstance(value, float) and not (abs(value) <= _LARGEST or is_limit):
            raise UserError(
                f"--config.{path}: given {value}, allowed what float32 holds"
            )
    sizes = MODELS[config.model.name].sizes
    if config.model.size not in sizes:
        raise UserError(_not_allowed("model.size", config.model.size, sizes))
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
