"""The table of runs: one line a run, with all that was asked for and measured."""

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from experiments.errors import UserError
from experiments.reporting.files import read_csv, write_csv
from experiments.study import arms


class Row(NamedTuple):
    """One run.

    Attributes:
      digest: of its whole config, as `meanings` has it.
      config: path of the config file.
      overrides: what the run sets, beside its seed.
      seed: of weights, data and faults.
      reason: completed or diverged.
      initial_loss: before the first step.
      val_loss: at the end; None if it diverged.
      best_val_loss: the lowest.
      val_accuracy: at the end; None of a task without one.
      train_loss: mean of the last tenth of the records.
      steps: that were made.
      tokens: or examples, in all of them.
      curve: step -> validation loss.
      layer_spread: step -> how far the smallest of the hidden layers' rates lies below
        the largest, as a share of it; where layers were looked at.
      seconds: of training.
      step_seconds: the median.
      start_seconds: to the first step, most of it compiling.
      total_seconds: of the whole run.
      state_bytes: of the optimizer.
      peak_memory_bytes: of the step as it was planned.
      flops: of a step, on average.
      data: the first digits of the data's digest.
      versions: of Python and the packages, and the commit.
    """

    digest: str
    config: str
    overrides: dict[str, Any]
    seed: int
    reason: str
    initial_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    val_accuracy: float | None
    train_loss: float | None
    steps: int
    tokens: int | None
    curve: dict[int, float]
    layer_spread: dict[int, float]
    seconds: float | None
    step_seconds: float | None
    start_seconds: float | None
    total_seconds: float | None
    state_bytes: int | None
    peak_memory_bytes: int | None
    flops: int | None
    data: str
    versions: str

    @property
    def key(self) -> str:
        """What it is known by."""
        return arms.key(self.config, self.overrides, self.seed)

    @property
    def loss(self) -> float:
        """At the end; infinite if it diverged."""
        return math.inf if self.val_loss is None else self.val_loss

    @property
    def capped(self) -> float:
        """The loss at the end, or that before the first step where that is lower."""
        start = math.inf if self.initial_loss is None else self.initial_loss
        return min(self.loss, start)


_DIGITS = 6
_TEXT = ("digest", "config", "reason", "data", "versions")
_CURVES = ("curve", "layer_spread")
_INTEGERS = ("seed", "steps", "tokens", "state_bytes", "peak_memory_bytes", "flops")


def rounded(value: float) -> float:
    """A measured number with the digits that are kept."""
    return float(f"{value:.{_DIGITS}g}")


def read(path: pathlib.Path) -> list[Row]:
    """The runs of a file in their order; none if there is no such file.

    Raises:
      UserError: if it is no such table.
    """
    if not path.exists():
        return []
    columns, rows = read_csv(path)
    if tuple(columns) != Row._fields:
        found = set(columns) ^ set(Row._fields)
        raise UserError(f"--runs: {path} has other columns, {', '.join(sorted(found))}")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            found.append(
                Row(**{name: _parsed(name, text) for name, text in row.items()})
            )
        except (ValueError, AttributeError) as error:
            raise UserError(f"--runs: {path}: line {number}: {error}") from error
    return found


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes the runs; the new file takes the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        [_text(name, value) for name, value in row._asdict().items()] for row in rows
    ]
    write_csv(path, Row._fields, lines)


def by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """The runs by what was asked for; of several the last."""
    return {row.key: row for row in rows}


def _parsed(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if name == "overrides":
        return json.loads(text)
    if name in _CURVES:
        pairs = (pair.split(":") for pair in text.split())
        return {int(step): float(value) for step, value in pairs}
    if not text:
        return None
    return int(text) if name in _INTEGERS else float(text)


def _text(name: str, value: Any) -> Any:
    if name == "overrides":
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    if name in _CURVES:
        return " ".join(f"{step}:{rounded(x):g}" for step, x in value.items())
    if isinstance(value, float):
        return rounded(value)
    return value
