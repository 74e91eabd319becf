"""The records of a run: `metrics.jsonl`, the truth for all else, and TensorBoard."""

import json
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: None stands for what is not finite, at any depth."""
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# TensorBoard's file is put on the disk this often; the other one after each record.
_SECONDS_BETWEEN_FLUSHES = 30


class MetricsWriter:
    """Appends one record per line, and is flushed after each.

    Args:
      folder: the run's.
      after: the step that the run goes on from; records of later ones are cut off.
    """

    def __init__(self, folder: pathlib.Path, after: int = 0):
        path = folder / "metrics.jsonl"
        self.kept = _cut(path, after) if path.exists() else []
        self._file = path.open("a")
        (folder / "tensorboard").mkdir(exist_ok=True)
        # Not its queue and thread, which hang when the disk is full.
        self._board = EventsWriter(str(folder / "tensorboard" / "events"), f".{after}")
        # TensorBoard drops what earlier files have from this step on.
        self._flushed = -math.inf
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add_event(after + 1, session_log=start)

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record; `record["step"]` places it.

        Args:
          record: scalars by name, or dictionaries of them.
        """
        self._file.write(json.dumps(finite_or_none(record)) + "\n")
        self._file.flush()
        scalars = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in _scalars(record)
            if tag != "step" and math.isfinite(value)
        ]
        self._add_event(record["step"], summary=summary_pb2.Summary(value=scalars))

    def _add_event(self, step: int, **what: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **what)
        self._board.write_event(event)
        if event.wall_time - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._board.flush()
            self._flushed = event.wall_time

    def flush(self) -> None:
        """Puts both files on the disk, for a checkpoint to build on."""
        self._board.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{group}", scalar) for group, scalar in value.items())
        else:
            yield name, value


def _cut(path: pathlib.Path, after: int) -> list[dict[str, Any]]:
    """Leaves the whole records up to a step in the file, and returns them."""
    kept = [record for record in read(path) if record["step"] <= after]
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.replace(path)
    return kept


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
