"""Points run one after the other in the launcher's own process."""

import logging
import pathlib
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.errors import UserError
from experiments.launchers.job import STOPPED
from experiments.points import Point
from experiments.trainer import loop

# It would say each time that the cache is another one now.
logging.getLogger(compilation_cache.__name__).setLevel(logging.WARNING)
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
        before = jax.config.jax_compilation_cache_dir
        _use_cache(str(cache))
        try:
            return [Done(_train(point, folder / point.name)) for point in points]
        finally:
            _use_cache(before)


def _use_cache(path: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()


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
