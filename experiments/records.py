"""The records of a run, and the one reader of its `metrics.jsonl`.

A record is a line: a JSON object with the `step` that it belongs to, and numbers by
name. A line that is anything else (half a record, the zeros that a power failure left,
a blank) costs that line alone. An error of the machine is an `OSError`, as always.
"""

import io
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

NAME = "metrics.jsonl"

# A line that ends within so many bytes is read from the end of a file at once.
_TAIL_BYTES = 4096
_START = b'{"step": '
_DIGITS = b"0123456789.+-e"
_BLOCK_BYTES = 1 << 16
# Enough for a number as JSON has it, and the sign after it.
_NUMBER_BYTES = 40
# With more forms than this it is no quicker to look for each of them.
_FEW = 16
_VAL_LOSS = b'"val_loss": '

# What is a number wherever it is; others may be a number of each group.
_ALONE = ("loss", "val_loss", "seconds", "step_seconds", "tokens_per_second")


def parse(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, None if it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    alone = not any(isinstance(record.get(name), dict) for name in _ALONE)
    good = record["step"] >= 0 and all(map(_is_value, record.values()))
    return record if alone and good else None


def _is_value(x: Any) -> bool:
    if isinstance(x, int):
        return abs(x) < 1 << 63
    return x is None or isinstance(x, float | dict)


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """All records of a file that nothing writes to, one at a time."""
    return Reader(path).added(complete=True)


class Reader:
    """Reads a file as it grows: at each call the records that were added.

    Args:
      path: of a `metrics.jsonl`, which may not be there yet.

    Attributes:
      bad: numbers of the lines without a record, from 1.
    """

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)
        self._begin()

    def _begin(self) -> None:
        self.bad: list[int] = []
        self._offset = self._lines = 0
        self._file_number = None

    def added(self, *, complete: bool = False) -> Iterator[dict[str, Any]]:
        """The records since the last call; all of them if the file was cut or replaced.

        Args:
          complete: take the last line too if nothing ends it, for a file that nothing
            writes to.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            self._seek(file)
            for line in file:
                if not line.endswith(b"\n") and not complete:
                    return
                self._offset += len(line)
                self._lines += 1
                record = parse(line)
                if record is None:
                    self.bad.append(self._lines)
                else:
                    yield record

    def _seek(self, file: BinaryIO) -> None:
        """Goes to where the last call ended, if that is still the end of a line."""
        number = os.fstat(file.fileno()).st_ino
        file.seek(max(self._offset - 1, 0))
        same = number == self._file_number and file.read(1) == b"\n"
        if self._offset and not same:
            self._begin()
            file.seek(0)
        self._file_number = number


def last(path: pathlib.Path) -> dict[str, Any]:
    """The last record of a file, read from its end; {} where there is none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return {}
    with file:
        size = file.seek(0, io.SEEK_END)
        length = _TAIL_BYTES
        while True:
            start = max(size - length, 0)
            file.seek(start)
            # What precedes the first end of a line may be the rest of one.
            lines = file.read(size - start).split(b"\n")[1 if start else 0 :]
            for line in reversed(lines):
                record = parse(line)
                if record is not None:
                    return record
            if not start:
                return {}
            length *= 4


class Part(NamedTuple):
    """The records of a file up to a step, as a run that goes on needs them.

    Attributes:
      spans: where they lie in the file, as (start, end) in bytes.
      bad: numbers of the lines without a record, from 1.
      last: the last of the records, {} if there is none.
      evaluated: step of the last one with a validation loss, None if there is none.
      val_loss: that loss, None if it is not finite.
      best_val_loss: the smallest finite one.
    """

    spans: list[tuple[int, int]]
    bad: list[int]
    last: dict[str, Any]
    evaluated: int | None
    val_loss: float | None
    best_val_loss: float | None


def up_to(path: pathlib.Path, step: int) -> Part:
    """Looks over a file, and parses hardly more than a line of each form.

    The records of a run differ in their digits alone, and come in the order of their
    steps. So a block of known forms is kept or left as a whole; only where it holds the
    step, or anything else, every line is parsed.

    Args:
      path: of a `metrics.jsonl`, which may be missing.
      step: of the last record to keep.
    """
    scan = _Scan(step)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return scan.part()
    with file:
        while block := file.read(_BLOCK_BYTES) + file.readline():
            scan.take(block)
    return scan.part()


class _Scan:
    """Looks over one block of lines after another."""

    def __init__(self, step: int):
        self._step = step
        self._forms: set[bytes] = set()
        self._offset = self._lines = 0
        self._last = b""
        self._spans: list[tuple[int, int]] = []
        self._bad: list[int] = []
        self._evaluated: int | None = None
        self._val_loss: float | None = None
        self._best: float | None = None

    def part(self) -> Part:
        """What has been found."""
        return Part(
            *(self._spans, self._bad, parse(self._last) or {}),
            *(self._evaluated, self._val_loss, self._best),
        )

    def take(self, block: bytes) -> None:
        """Looks at the next lines."""
        try:
            known = self._is_known(block)
        except ValueError:  # digits that are no number
            known = False
        if not known:
            for line in io.BytesIO(block):
                self._take_line(line)

    def _is_known(self, block: bytes) -> bool:
        """Takes a block of records of known forms, all to be kept or none."""
        form = block.translate(None, _DIGITS)
        # A form ends with its only newline: if the lengths add up, all is of such.
        known = sum(len(x) * form.count(x) for x in self._forms)
        if known != len(form) or len(self._forms) > _FEW:
            return False
        last = block[block.rfind(b"\n", 0, -1) + 1 :]
        keep = _step_of(last) <= self._step
        if not keep and _step_of(block) <= self._step:
            return False
        if keep:
            self._find_losses(block)
            self._keep(self._offset, self._offset + len(block))
            self._last = last
        self._offset += len(block)
        self._lines += block.count(b"\n")
        return True

    def _find_losses(self, block: bytes) -> None:
        losses, at = [], block.find(_VAL_LOSS)
        while at >= 0:
            evaluated, at = at, at + len(_VAL_LOSS)
            text = block[at : at + _NUMBER_BYTES].partition(b"}")[0].partition(b",")[0]
            losses.append(None if text == b"null" else float(text))
            at = block.find(_VAL_LOSS, at)
        if losses:
            line = block[block.rfind(b"\n", 0, evaluated) + 1 :]
            self._note_losses(_step_of(line), losses)

    def _take_line(self, line: bytes) -> None:
        start, self._offset = self._offset, self._offset + len(line)
        self._lines += 1
        record = parse(line)
        if record is None:
            self._bad.append(self._lines)
            return
        plain = line.startswith(_START) and b"," in line and line.endswith(b"\n")
        if plain and line.count(_VAL_LOSS) == ("val_loss" in record):
            self._forms.add(line.translate(None, _DIGITS))
        if record["step"] <= self._step:
            self._keep(start, self._offset)
            self._last = line
            if "val_loss" in record:
                self._note_losses(record["step"], [record["val_loss"]])

    def _keep(self, start: int, end: int) -> None:
        if self._spans and self._spans[-1][1] == start:
            start = self._spans.pop()[0]
        self._spans.append((start, end))

    def _note_losses(self, step: int, values: list[float | None]) -> None:
        self._evaluated, self._val_loss = step, finite(values[-1])
        good = [x for x in values if finite(x) is not None]
        if self._best is not None:
            good.append(self._best)
        self._best = min(good, default=None)


def _step_of(line: bytes) -> int:
    """The step of a record of a known form."""
    return int(line[len(_START) : line.index(b",", 0, _NUMBER_BYTES)])


def finite(value: float | None) -> float | None:
    """None for what is not finite, as JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: None stands for what is not finite, at any depth."""
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
