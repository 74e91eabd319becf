"""Points run one after the other in the launcher's own process."""

import pathlib
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import ClassVar

from experiments import compiled
from experiments.errors import UserError
from experiments.launchers.job import STOPPED
from experiments.points import Point
from experiments.trainer import loop

_SIGNALS = {status: signal.Signals(status - 128) for status in STOPPED}


class Done:
    """A job that has ended already."""

    def __init__(self, status: int):
        self._status = status

    def status(self) -> int:
        """The exit status."""
        return self._status

    def at_work(self) -> bool:
        """Not any more."""
        return False

    def stop(self) -> None:
        """There is nothing to stop."""

    kill = stop


class Inline:
    """Runs a point when it is started."""

    OPTIONS: ClassVar[Mapping[str, str] | None] = {}
    slots = workers = 1
    shares_terminal = True  # the training shows its own progress
    blocks = True

    def __init__(self, workers: int, folder: pathlib.Path, options: Mapping):
        """Takes one worker.

        Raises:
          UserError: if more is asked for.
        """
        if workers != 1:
            raise UserError(f"--workers: given {workers}, --launcher=inline has 1")
        del folder, options

    def start(
        self, points: Sequence[Point], folder: pathlib.Path, cache: pathlib.Path
    ) -> list[Done]:
        """Trains the points."""
        with compiled.kept_in(cache):
            return [Done(_train(point, folder / point.name)) for point in points]


def _train(point: Point, folder: pathlib.Path) -> int:
    try:
        status = loop.train(point.config, str(folder), overrides=point.overrides)
    except UserError as error:
        _note(folder, f"error: {error}\n")
        return error.status
    except Exception:
        _note(folder, traceback.format_exc())
        return 1
    if status in _SIGNALS:  # the training took the launcher's own signal
        signal.raise_signal(_SIGNALS[status])
    return status


def _note(folder: pathlib.Path, text: str) -> None:
    """Where the other launchers have what a worker said."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "worker.log").open("a") as file:
            file.write(text)
    except OSError:
        print(text, end="", file=sys.stderr)
