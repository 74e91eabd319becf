"""What all launchers share: the command of a point, and what its folder says."""

import json
import math
import os
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from experiments.points import Point
from experiments.trainer import signals
from experiments.trainer.lock import lock

# A reason of result.json -> the status that its run left with; only these are the end.
FINISHED = {"completed": 0, "diverged": 3}
IN_USE = 4
STOPPED = tuple(sorted(signals.STOPPED.values()))


class Job(Protocol):
    """One point at work."""

    def status(self) -> int | None:
        """None while it works, then the exit status."""
        ...

    def at_work(self) -> bool:
        """Whether it has begun, so that a folder without changes means something."""
        ...

    def stop(self) -> None:
        """Asks it to write a checkpoint and end."""
        ...

    def kill(self) -> None:
        """Ends it at once, where it does not hear."""
        ...


class Launcher(Protocol):
    """What starts the points of a sweep.

    Attributes:
      OPTIONS: what it takes in `--launcher_options`, with a word on each; None:
        another program knows.
      slots: how many points it takes at once.
      workers: how many of them run at once.
      shares_terminal: whether a training shows its own progress.
      blocks: whether points are at their end when `start` returns, so that none can be
        stopped before.
    """

    OPTIONS: ClassVar[Mapping[str, str] | None]
    slots: int
    workers: int
    shares_terminal: bool
    blocks: bool

    def __init__(
        self, workers: int, folder: pathlib.Path, options: Mapping[str, Any]
    ): ...

    def start(
        self, points: Sequence[Point], folder: pathlib.Path, cache: pathlib.Path
    ) -> Sequence[Job]:
        """Starts the points, one job each, which train in `folder / point.name`."""
        ...


class Elsewhere:
    """A point that a process works on which this launcher did not start.

    A launcher that was killed leaves such workers behind.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def status(self) -> int | None:
        """None while the folder is locked; 143 if its process left work undone."""
        if in_use(self._folder):
            return None
        result = finished(self._folder)
        return FINISHED[result["reason"]] if result else 128 + signal.SIGTERM

    def at_work(self) -> bool:
        """It is."""
        return True

    def stop(self) -> None:
        """Leaves it alone: the folder's own process finishes it."""

    kill = stop


def command(point: Point, folder: pathlib.Path) -> list[str]:
    """The words that train a point in its folder."""
    return [
        *(sys.executable, "-m", "experiments.train", f"--config={point.part.config}"),
        *(f"--workdir={folder / point.name}", *point.words),
    ]


def finished(folder: pathlib.Path) -> dict[str, Any] | None:
    """The result of a completed or diverged run, None where work is left.

    It has `reason`, `val_loss` (a number if the run completed), `steps` and
    `total_seconds`, whatever else the file holds; a file without them is no result, as
    a run that goes on writes it again.
    """
    try:
        result = json.loads((folder / "result.json").read_text())
        if result["reason"] not in FINISHED:
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    numbers = ("val_loss", "steps", "total_seconds")
    given = {name: result.get(name) for name in numbers}
    result |= {name: x if _is_number(x) else None for name, x in given.items()}
    if result["reason"] == "completed" and None in (
        result["val_loss"],
        result["steps"],
    ):
        return None
    return result


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def in_use(folder: pathlib.Path) -> bool:
    """Whether a run holds the folder."""
    try:
        held = lock(folder)
    except BlockingIOError:
        return True
    except OSError:  # there is none yet, or the worker will say what is wrong
        return False
    for one in held:
        os.close(one)
    return False


def log_size(folder: pathlib.Path) -> int:
    """Where in worker.log the next attempt's words begin."""
    try:
        return (folder / "worker.log").stat().st_size
    except OSError:
        return 0


def why_it_left(folder: pathlib.Path, status: int, start: int) -> str:
    """Why a worker left, in one line.

    Args:
      folder: of its point.
      status: that it left with, negative for a signal's number.
      start: where in worker.log its words begin.
    """
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by {names.get(-status, f'signal {-status}')}"
    try:
        with (folder / "worker.log").open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    # What the program says of itself comes before what its threads may say after it.
    own = [line for line in lines if line.startswith("error: ")]
    raised = _raised(lines)
    said = own[-1:] if status == 2 else []
    said = said or raised[-1:] or own[-1:] or lines[-1:] or [f"exit status {status}"]
    return said[0].removeprefix("error: ")


def _raised(lines: list[str]) -> list[str]:
    """The lines with the exceptions of tracebacks, without the notes after them."""
    found, inside = [], False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not line.startswith(" "):
            # Without memory for more, Python 3.13 prints the exception's own fields.
            kind = line.partition("object type name: ")[2]
            if kind or not line.startswith("object "):
                found.append(kind or line)
                inside = False
    return found
