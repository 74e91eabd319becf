"""What is trained on: one module per source, and those that `register` adds.

A source of tokens has `train_batches`, `eval_batches`, `vocab_size`, `digest` and
`files`, as `Corpus` has; one of labelled images what `Images` has.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments.data import (
    cifar10,
    digits,
    installed,
    shards,
    stdlib,
    stream,
)
from experiments.data import tokenizer as tokenizers
from experiments.data.images import Images as Images
from experiments.data.windows import Corpus as Corpus
from optlab.origins import refuse_other
from optlab.signatures import accepted, parameters_of, takes

# Fields of `task` that a source gets where it has an argument of that name.
FIELDS = ("path", "subset", "tokenizer", "vocab_size", "text_field")
# What they are where they are not given, if not None.
_DEFAULTS = {"text_field": "text"}


class Source(NamedTuple):
    """How a source is read.

    Attributes:
      load: `load(**arguments)`; those of `FIELDS` are fields of `task`, others with a
        default are what `task.kwargs` may hold.
      tasks: names of the tasks that take it.
    """

    load: Callable[..., Any]
    tasks: tuple[str, ...]

    def required(self) -> list[str]:
        """The fields that it needs."""
        parameters = parameters_of(self.load)
        return [
            x
            for x in FIELDS
            if x in parameters and parameters[x].default is inspect.Parameter.empty
        ]


# Name in `task.data` -> source.
SOURCES: dict[str, Source] = {}


def register(name: str, load: Callable[..., Any], *, task: str | Sequence[str]) -> None:
    """Adds a source of data, for `task.data` to choose.

    Args:
      name: to call it by.
      load: `load(**arguments)` to what the task takes: a `Corpus` for
        "language_model", `Images` for "classification". Arguments called `path`,
        `subset`, `text_field`, `tokenizer` or `vocab_size` are these fields of `task`,
        needed where they have no default; all others need one, and are offered as
        `task.kwargs`.
      task: name of the task that takes it, or several.

    Raises:
      ValueError: the name is taken by what another file registers, or an argument has
        no value. From the same file it may be registered again.
    """
    refuse_other(name, SOURCES[name].load if name in SOURCES else None, load)
    for x in parameters_of(load).values():
        variadic = x.kind in (x.VAR_KEYWORD, x.VAR_POSITIONAL)
        if x.default is x.empty and not variadic and x.name not in FIELDS:
            raise ValueError(f"{name}: the argument {x.name} needs a default")
    SOURCES[name] = Source(load, (task,) if isinstance(task, str) else tuple(task))


def load(config: ml_collections.ConfigDict, task: str) -> Any:
    """Reads the source that `task.data` names.

    Args:
      config: the `task` part of a config.
      task: the source must be one that this task takes.

    Raises:
      ValueError: naming the field that is missing, wrong, or of another source.
    """
    allowed = [name for name in SOURCES if task in SOURCES[name].tasks]
    if config.data not in allowed:
        raise ValueError(
            f"task.data: given {config.data!r}, allowed {', '.join(allowed)} with "
            f"task.name={config.name}"
        )
    source = SOURCES[config.data]
    for field in FIELDS:
        given = config[field] != _DEFAULTS.get(field)
        if given and not takes(source.load, field):
            raise ValueError(
                f"task.{field}: given {config[field]!r}, task.data={config.data} has "
                "none"
            )
    for field in source.required():
        if config[field] is None:
            raise ValueError(f"task.{field}: missing, task.data={config.data} needs it")
    fields = {
        name: config[name]
        for name in FIELDS
        if config[name] is not None and takes(source.load, name)
    }
    return source.load(**fields, **accepted(source.load, config.kwargs))


def _stream(
    path: str,
    subset: str | None = None,
    text_field: str = "text",
    tokenizer: str | None = None,
) -> stream.Stream:
    return stream.Stream(path, subset, text_field, tokenizers.load(tokenizer))


def _stdlib() -> Corpus:
    return stdlib.load()


def _installed(path: str | None = None, vocab_size: int | None = None) -> Corpus:
    return installed.load(path, vocab_size)


def _digits() -> Images:
    return digits.load()


def _cifar10(path: str) -> Images:
    return cifar10.load(path)


for _name, _load in {
    "stdlib": _stdlib,
    "installed_sources": _installed,
    "shards": shards.load,
    "stream": _stream,
}.items():
    register(_name, _load, task="language_model")
for _name, _load in {"digits": _digits, "cifar10": _cifar10}.items():
    register(_name, _load, task="classification")
