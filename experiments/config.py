"""A run's configuration: what it holds, how file and command line are read.

A config file's `get_config()` starts from `base()` and sets what it wants. `load` reads
the names of optimizer and schedule first, fills `optimizer.kwargs` and
`schedule.kwargs` from the signatures that these names stand for, locks the result and
parses the overrides, so that a misspelt argument is an error like any other field.
"""

import copy
import inspect
import math
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

import optlab
from experiments.errors import UserError, nearest
from experiments.fields import FIELDS
from experiments.models import MODELS
from experiments.python_files import load_python_config
from experiments.trainer.optimizer import SCHEDULES, SUPPLIED

# Filled from the signatures of what the names stand for.
_KWARGS = ("optimizer.kwargs", "schedule.kwargs")


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
    for path in _KWARGS:
        config[path.split(".")[0]].kwargs = ml_collections.ConfigDict()
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
    config = _get_config(path)
    given = [
        re.match(r"--?(no)?config\.([^=]*)=?(.*)", word, re.S) for word in overrides
    ]
    for field in ("optimizer.name", "schedule.name"):
        named = [match[3] for match in given if match[2] == field]
        section = config[field.split(".")[0]]
        # The file's own kwargs belong to the file's own choice.
        own = {} if named and named[-1] != section.name else section.kwargs.to_dict()
        section.name = named[-1] if named else section.name
        section.kwargs = _signature_kwargs(field, section.name, own)
    allowed = flatten(config)
    for match in given:
        if match[2] not in allowed:
            raise UserError(_unknown(f"--config.{match[2]}", match[2], allowed))
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["", *overrides]
    )
    try:
        values(["", *overrides])
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wrong_type(str(error), given, config)) from error
    config = values.config
    _check(config)
    parsed = flatten(config)
    return config, {match[2]: parsed[match[2]] for match in given}


def describe() -> str:
    """The table of all fields, for `--help`."""
    lines = []
    for path, field in FIELDS.items():
        start = "None" if isinstance(field.default, type) else field.default
        among = f" ({', '.join(field.choices)})" if len(field.choices) > 1 else ""
        lines.append(f"  --config.{path}={start}\n      {field.help}{among}")
    for path in _KWARGS:
        section = path.split(".")[0]
        lines.append(f"  --config.{path}.*\n      the arguments of the {section}")
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


def _get_config(path: str) -> ml_collections.ConfigDict:
    config = load_python_config(path, "get_config", "--config")
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config: get_config() of {path} returns no ConfigDict")
    missing = set(flatten(base())) - set(flatten(config))
    if missing:
        raise UserError(f"--config: {path} lacks {', '.join(sorted(missing))}")
    return copy.deepcopy(config).unlock()


def _signature_kwargs(
    field: str, name: str, own: dict[str, Any]
) -> ml_collections.ConfigDict:
    """The arguments that the named factory leaves to the config, at their defaults."""
    if field == "optimizer.name":
        try:
            factory = optlab.registry.get(name).factory
        except ValueError as error:
            raise UserError(f"--config.{field}: {error}") from error
    elif name in SCHEDULES:
        factory = SCHEDULES[name]
    else:
        raise UserError(_not_allowed(field, name, SCHEDULES))
    kwargs = ml_collections.ConfigDict()
    parameters = inspect.signature(factory).parameters.values()
    for parameter in parameters:
        default = parameter.default
        if parameter.name in SUPPLIED or default is parameter.empty:
            continue
        if default is None:
            kwargs[parameter.name] = config_dict.placeholder(_type_of(parameter))
        elif isinstance(default, (bool, int, float, str, tuple)):
            kwargs[parameter.name] = default
    for argument, value in own.items():
        path = field.replace(".name", f".kwargs.{argument}")
        if argument not in kwargs:
            raise UserError(_unknown(path, argument, kwargs))
        try:
            kwargs[argument] = value
        except TypeError as error:
            raise UserError(
                f"{path}: given {value!r}, {error}".splitlines()[0]
            ) from error
    return kwargs


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


def _wrong_type(message: str, given: list, config: ml_collections.ConfigDict) -> str:
    """absl's complaint about one override, in our own words."""
    for match in given:
        if f"config.{match[2]}=" in message:
            *parents, name = match[2].split(".")
            section = config
            for parent in parents:
                section = section[parent]
            given_type = f"{match[3]!r}, allowed {section.get_type(name).__name__}"
            return f"--config.{match[2]}: given {given_type}"
    return f"--config: {message.splitlines()[0]}"


def _check(config: ml_collections.ConfigDict) -> None:
    flat = flatten(config)
    for path, field in FIELDS.items():
        value = flat[path]
        if value is None:
            continue
        if field.choices and value not in field.choices:
            raise UserError(_not_allowed(path, value, field.choices))
        if isinstance(value, float) and not math.isfinite(value):
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
