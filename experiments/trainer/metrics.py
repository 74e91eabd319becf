"""The records of a run: `metrics.jsonl`, the truth for all else, and its followers.

TensorBoard's files are always written, Weights & Biases only where a project is named.
"""

import importlib.util
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from experiments import records
from experiments.errors import UserError

# TensorBoard's file is put on the disk this often; the other one after each record.
_SECONDS_BETWEEN_FLUSHES = 30


class MetricsWriter:
    """Appends one record per line, and is flushed after each.

    Args:
      folder: the run's.
      after: the step that the run goes on from; records of later ones are cut off.
      wandb_project: on Weights & Biases, where a run goes on too.

    Raises:
      UserError: if Weights & Biases does not take the run.

    Attributes:
      kept: the records that the run goes on from.
    """

    def __init__(
        self, folder: pathlib.Path, after: int = 0, wandb_project: str | None = None
    ):
        path = folder / records.NAME
        self.kept = _cut(path, after)
        self._file = path.open("a")
        (folder / "tensorboard").mkdir(exist_ok=True)
        # Not its queue and thread, which hang when the disk is full.
        self._board = EventsWriter(str(folder / "tensorboard" / "events"), f".{after}")
        # TensorBoard drops what earlier files have from this step on.
        self._flushed = -math.inf
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add_event(after + 1, session_log=start)
        self._wandb = _wandb_run(folder, wandb_project) if wandb_project else None

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record; `record["step"]` places it.

        Args:
          record: scalars by name, or dictionaries of them.
        """
        self._file.write(json.dumps(records.finite_or_none(record)) + "\n")
        self._file.flush()
        scalars = {
            tag: value
            for tag, value in _scalars(record)
            if tag != "step" and math.isfinite(value)
        }
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
        ]
        self._add_event(record["step"], summary=summary_pb2.Summary(value=values))
        if self._wandb:
            self._wandb.log(scalars, step=record["step"])

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
        """Closes the files, and the run on Weights & Biases."""
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


def check_wandb(project: str | None) -> None:
    """Refuses a project where there is no wandb to write to it.

    Raises:
      UserError: if one is named and the package is missing.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "--config.train.wandb_project: wandb is not installed (pip install wandb)"
        )


def _wandb_run(folder: pathlib.Path, project: str):
    """The run of this folder; later steps that it has already are not taken again."""
    import wandb

    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            project=project,
            name=folder.name,
            id=path.read_text(),
            resume="allow",
            dir=str(folder),
            config=json.loads((folder / "config.json").read_text())["config"],
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"--config.train.wandb_project: {reason}") from error


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{group}", scalar) for group, scalar in value.items())
        else:
            yield name, value


def _cut(path: pathlib.Path, after: int) -> records.Part:
    """Leaves the records up to a step in the file, and says what they are."""
    part = records.up_to(path, after)
    if len(part.spans) > 1 or (part.spans and part.spans[0][0]):
        temporary = path.with_suffix(".new")
        with path.open("rb") as old, temporary.open("wb") as new:
            for start, end in part.spans:
                old.seek(start)
                new.write(old.read(end - start))
        temporary.replace(path)
    elif path.exists():
        os.truncate(path, part.spans[0][1] if part.spans else 0)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return part
