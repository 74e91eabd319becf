"""What all launchers share: the command of a point, and what its folder says."""

import fcntl
import json
import pathlib
import sys
from typing import Any, Protocol

from experiments.points import Point

# A reason of result.json -> the status that its run left with; only these are the end.
FINISHED = {"completed": 0, "diverged": 3}
IN_USE = 4
STOPPED = (129, 130, 143)


class Job(Protocol):
    """One point at work."""

    def status(self) -> int | None:
        """None while it works, then the exit status."""
        ...

    def stop(self) -> None:
        """Asks it to write a checkpoint and end."""
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
        return FINISHED[result["reason"]] if result else STOPPED[-1]

    def stop(self) -> None:
        """Leaves it alone: the folder's own process finishes it."""


def command(point: Point, folder: pathlib.Path) -> list[str]:
    """The words that train a point in its folder."""
    return [
        *(sys.executable, "-m", "experiments.train", f"--config={point.part.config}"),
        *(f"--workdir={folder / point.name}", *point.words),
    ]


def finished(folder: pathlib.Path) -> dict[str, Any] | None:
    """The result of a completed or diverged run, None where work is left."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return result if result.get("reason") in FINISHED else None


def in_use(folder: pathlib.Path) -> bool:
    """Whether a run holds the folder."""
    try:
        with (folder / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
