"""The records that a report keeps of a run: few, however long the run is."""

from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Each is kept apart, since a run may have a thousand records for each evaluation.
MOST_EVALUATIONS = 4096
MOST_OTHERS = 2048
_LARGEST = 1e150
_FIELDS = (
    *("loss", "val_loss", "val_accuracy"),
    *("tokens", "seconds", "step_seconds"),
)


# Of a record with diagnostics: the largest of all layers.
LOGITS = ("largest_attention_logit", "largest_output_logit")
# Of an evaluation besides: the accuracy on each group of classes, and their rank.
_BY_GROUP = ("val_accuracy_", "val_effective_rank")


class Kept(NamedTuple):
    """What is left of a run's records.

    Attributes:
      records: by step, each with the fields that a report shows, as far as they are
        finite numbers; `learning_rate` is that of the hidden matrices.
      losses: the steps and the training losses of all records, for a run with spikes.
    """

    records: list[dict[str, float]]
    losses: tuple[np.ndarray, np.ndarray]


class Thinned:
    """Every `2**k`-th of what is added, and the last one.

    Two of them that were added the same, one of them more, share what the longer one
    has of the shorter: the steps of two seeds stay comparable.

    Args:
      most: how many are kept, beside the last; `k` grows with what is added.
    """

    def __init__(self, most: int):
        self._most = most
        self._kept: list[Any] = []
        self._last: list[Any] = []
        self._every = 1
        self._added = 0

    def add(self, item: Any) -> None:
        """Adds one."""
        self._last = [item]
        if self._added % self._every == 0:
            self._kept.append(item)
            self._last = []
            if len(self._kept) > self._most:
                del self._kept[1::2]
                self._every *= 2
                self._last = [] if self._kept[-1] is item else [item]
        self._added += 1

    def items(self) -> list[Any]:
        """What is kept, in the order in which it was added."""
        return self._kept + self._last


def number(value: Any) -> float | None:
    """A number whose square is finite too, and None for all else that JSON may hold."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known and -_LARGEST <= value <= _LARGEST else None


def keep(records: Iterable[dict[str, Any]], *, losses: bool = False) -> Kept:
    """Reads all records and keeps few.

    Args:
      records: of a run.
      losses: keep the training loss of every record too.
    """
    evaluations, others = Thinned(MOST_EVALUATIONS), Thinned(MOST_OTHERS)
    steps, found = array("d"), array("d")
    for record in records:
        step = number(record.get("step"))
        if step is None:
            continue
        rates = record.get("learning_rate")
        rate = rates.get("learning_rate") if isinstance(rates, dict) else None
        known = {name: number(record.get(name)) for name in _FIELDS}
        if "val_loss" in record:
            own = [name for name in record if name.startswith(_BY_GROUP)]
            known |= {name: number(record[name]) for name in own}
        for name in LOGITS:
            if isinstance(record.get(name), dict):
                layers = map(number, record[name].values())
                known[name] = max((x for x in layers if x is not None), default=None)
        known |= {"step": step, "learning_rate": number(rate)}
        few = {name: value for name, value in known.items() if value is not None}
        (evaluations if "val_loss" in few else others).add(few)
        if losses and "loss" in few:
            steps.append(step)
            found.append(few["loss"])
    kept = sorted(evaluations.items() + others.items(), key=lambda few: few["step"])
    order = np.argsort(steps, kind="stable")
    return Kept(kept, (np.asarray(steps)[order], np.asarray(found)[order]))
