"""A task joins data, model and loss; the trainer sees nothing else.

A task has `init(key) -> params` (a plain nested dictionary),
`loss(params, batch, key) -> (loss, auxiliary scalars)`, `eval_metrics(params, batch)`,
scalars of an evaluation batch with `loss` among them, `roles`, the optimizer's rule,
`train_iterator(seed, process)` (with `get_state` and `set_state`; this process's rows
of each batch), `eval_batches()`, `tokens_per_batch`, `digest`, the hash of its data,
and `files`, one of each file that may change by its name ({} of other data). It may
have `largest_logits(params, batch)` for the diagnostics.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from experiments.tasks.classification import Classification
from experiments.tasks.in_turn import ClassesInTurn
from experiments.tasks.language_model import LanguageModel
from optlab.origins import refuse_other
from optlab.signatures import accepted

# What the trainer asks of a task.
_PARTS = (
    *("init", "loss", "eval_metrics", "roles", "train_iterator", "eval_batches"),
    *("tokens_per_batch", "digest", "files"),
)

# Name in `task.name` -> config -> task.
TASKS: dict[str, Callable[..., Any]] = {}


def register(name: str, task: Callable[..., Any]) -> None:
    """Adds a task, for `task.name` to choose.

    Args:
      name: to call it by.
      task: `task(config, **arguments)`, with the whole config, to an object as this
        module describes. Arguments with a default are offered as `task.kwargs`.
        `experiments.data.load` and `experiments.models.build` give it what the config
        chooses.

    Raises:
      ValueError: the name is taken by what another file registers. From the same file
        it may be registered again.
    """
    refuse_other(name, TASKS.get(name), task)
    TASKS[name] = task


def build(config: ml_collections.ConfigDict) -> Any:
    """The task that a config describes.

    Raises:
      ValueError: naming the field that is wrong, or what the task lacks.
    """
    task = TASKS[config.task.name]
    made = task(config, **accepted(task, config.task.kwargs))
    for part in _PARTS:
        if not hasattr(made, part):
            raise ValueError(
                f"task.name: {config.task.name} makes a task without {part}"
            )
    return made


register("language_model", LanguageModel)
register("classification", Classification)
register("classes_in_turn", ClassesInTurn)
