"""What is trained on: one module per source."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from experiments.data import (
    cifar10,
    digits,
    installed,
    shards,
    stdlib,
    stream,
    tokenizer,
)

# Fields of `task` that only some sources have; None where they are not given.
_OWN_FIELDS = ("path", "subset", "tokenizer", "vocab_size")


class Source(NamedTuple):
    """How a source is read from the `task` part of a config, and what it asks there."""

    load: Callable[[ml_collections.ConfigDict], Any]
    fields: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


# Name in `task.data` -> a source of tokens: `train_batches`, `eval_batches`,
# `vocab_size`, `digest`, `files`.
CORPORA = {
    "stdlib": Source(lambda task: stdlib.load()),
    "installed_sources": Source(
        lambda task: installed.load(task.path, task.vocab_size), ("path", "vocab_size")
    ),
    "shards": Source(
        lambda task: shards.load(task.path, task.vocab_size),
        ("path", "vocab_size"),
        required=("path",),
    ),
    "stream": Source(
        lambda task: stream.Stream(
            task.path, task.subset, task.text_field, tokenizer.load(task.tokenizer)
        ),
        ("path", "subset", "tokenizer"),
        required=("path",),
    ),
}
# The same for sources of labelled images.
IMAGES = {
    "digits": Source(lambda task: digits.load()),
    "cifar10": Source(
        lambda task: cifar10.load(task.path), ("path",), required=("path",)
    ),
}


def load(task: ml_collections.ConfigDict, sources: Mapping[str, Source]) -> Any:
    """Reads the source that `task.data` names.

    Args:
      task: the `task` part of a config.
      sources: `CORPORA` or `IMAGES`.

    Raises:
      ValueError: naming the field that is missing, wrong, or of another source.
    """
    if task.data not in sources:
        raise ValueError(
            f"task.data: given {task.data!r}, allowed {', '.join(sources)} with "
            f"task.name={task.name}"
        )
    source = sources[task.data]
    for field in _OWN_FIELDS:
        if task[field] is not None and field not in source.fields:
            raise ValueError(
                f"task.{field}: given {task[field]!r}, task.data={task.data} has none"
            )
        if task[field] is None and field in source.required:
            raise ValueError(f"task.{field}: missing, task.data={task.data} needs it")
    return source.load(task)
