"""The arms of the claims: what is trained, and which of its values are tuned."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments import choices, points
from experiments import config as configs
from experiments.parts import Part
from experiments.points import Point
from experiments.study.search import Search, Values

RATE = "optimizer.learning_rate"
DECAY = "optimizer.weight_decay"
OTHERS = "optimizer.adam_learning_rate"
# The fields that others follow from.
_NAMES = tuple(field for section in choices.FIELDS.values() for field in section)
# Losses are compared where task and these are alike.
_SETTING = ("train.steps", "train.batch_size", "model.width")
# Where the gradient norms are kept that a refined schedule reads, by their run.
NORMS = "results/study/norms"


class Task(NamedTuple):
    """What is learned: a config file, and what all of its runs have in common."""

    config: str
    overrides: Mapping[str, Any]


_LANGUAGE = {
    "model.unroll": True,
    "task.eval_windows": 128,
    "train.eval_every": 40,
    "train.checkpoint_every": 0,
}
# A LLaMA of 0.23 M parameters on 8 windows of 128 bytes.
_SMALL = _LANGUAGE | {
    "model.width": 64,
    "model.hidden": 176,
    "train.batch_size": 8,
}
_DIGITS = {"train.eval_every": 30, "train.checkpoint_every": 0}
TASKS = {
    "small": Task("configs/stdlib_lm.py", _SMALL),
    # 0.86 M parameters, 16 windows.
    "medium": Task("configs/stdlib_lm.py", _LANGUAGE),
    "vit": Task(
        "configs/digits.py", _DIGITS | {"model.name": "vit", "model.unroll": True}
    ),
    "resnet": Task("configs/digits.py", _DIGITS | {"model.name": "resnet"}),
    # 1.3 M parameters; tokens of a BPE on all sources of the machine.
    "sources": Task(
        "configs/installed_sources_lm.py",
        _LANGUAGE
        | {
            "task.vocab_size": 4096,
            "task.context": 128,
            "model.size": "tiny",
            "model.dtype": "float32",
            "train.batch_size": 8,
            "train.steps": 600,
        },
    ),
    # The small language model, with the combinations of methods that no paper has.
    "combined": Task("configs/combinations.py", _SMALL),
}


class Arm(NamedTuple):
    """One side of a comparison.

    Attributes:
      task: of `TASKS`.
      overrides: field -> value.
      search: what is tuned, and the seeds.
      refines: the arm of the same claim whose gradient norms make this one's schedule.
    """

    task: str
    overrides: Mapping[str, Any]
    search: Search
    refines: str = ""

    def fields(self, values: Values, norms: str = "") -> dict[str, Any]:
        """What a trial sets, beside its seed: the rate, and what the config has not.

        So claims share their runs, whichever fields each of them names.

        Args:
          values: of the axes.
          norms: folder with the gradient norms of the run that it refines.
        """
        tuned = {
            axis.field: value
            for axis, value in zip(self.search.axes, values, strict=True)
        }
        fields = {**TASKS[self.task].overrides, **self.overrides, **tuned}
        if norms:
            fields["schedule.kwargs.run"] = norms
        plain = _plain(
            self.config, tuple((x, fields[x]) for x in _NAMES if x in fields)
        )
        return {
            x: value
            for x, value in fields.items()
            if x == RATE or value != plain.get(x, ...)
        }

    @property
    def setting(self) -> dict[str, Any]:
        """Of the data, the size of the model and the budget, what is set."""
        own = {x: self.overrides[x] for x in _SETTING if x in self.overrides}
        return {**TASKS[self.task].overrides, **own}

    @property
    def config(self) -> str:
        """The path of its config file."""
        return TASKS[self.task].config


@functools.cache
def _plain(config: str, names: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The fields of a config that chooses these names; the names are the file's own."""
    # What a refined schedule reads is needed to build it, and is no default.
    words = [f"--config.{x}={value}" for x, value in names if value != "refined"]
    found = configs.flatten(configs.load(config, words)[0])
    if not words:
        return found
    own = _plain(config, ())
    return found | {x: own[x] for x in _NAMES}


def key(config: str, fields: Mapping[str, Any], seed: int) -> str:
    """What a run is known by: all that was asked for, in one line."""
    return json.dumps([config, dict(fields), seed], sort_keys=True)


def point(name: str, arm: Arm, fields: Mapping[str, Any], seed: int) -> Point:
    """A run as the launchers take it.

    Args:
      name: of claim and arm, for the launcher's lines.
      arm: that it belongs to.
      fields: from `Arm.fields`.
      seed: of the run.
    """
    part = Part(
        arm.config,
        axes={RATE: [fields[RATE]]},
        seeds=tuple(range(arm.search.seeds)),
        name=name,
    )
    words = [f"--config.{field}={value}" for field, value in fields.items()]
    return points.make(part, (*words, f"--config.seed={seed}"))
