"""Points run as processes of this machine, a limited number at once."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Mapping, Sequence

from experiments.errors import UserError
from experiments.launchers.job import command
from experiments.points import Point


class Process:
    """A worker; the launcher's Ctrl-C does not reach it by itself."""

    def __init__(
        self, words: Sequence[str], log: pathlib.Path, variables: Mapping[str, str]
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                start_new_session=True,
            )

    def status(self) -> int | None:
        """None while it works, then the exit status, negative for a signal's number."""
        return self._process.poll()

    def at_work(self) -> bool:
        """From its start on."""
        return True

    def stop(self) -> None:
        """Sends SIGTERM, upon which the training writes a checkpoint and ends."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it with what it has started: they are a session."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


class Local:
    """Runs `workers` processes at once.

    submitit's local executor limits nothing, and would wrap each in a second process.
    """

    shares_terminal = False

    def __init__(self, workers: int, folder: pathlib.Path, parameters: Mapping):
        """Takes no parameters.

        Raises:
          UserError: if there are any.
        """
        if parameters:
            raise UserError(f"--slurm: given {dict(parameters)}, --launcher is local")
        del folder
        self.slots = self.workers = workers
        # Threads of several workers on the same cores only wait for each other.
        crowded = workers > 1 and (os.cpu_count() or 1) < 4 * workers
        self._variables = {"XLA_FLAGS": _one_thread()} if crowded else {}

    def start(
        self, points: Sequence[Point], folder: pathlib.Path, cache: pathlib.Path
    ) -> list[Process]:
        """Starts a process for each point."""
        variables = environment(cache) | self._variables
        return [
            Process(
                command(point, folder), folder / point.name / "worker.log", variables
            )
            for point in points
        ]


def _one_thread() -> str:
    given = os.environ.get("XLA_FLAGS", "")
    return f"{given} --xla_cpu_multi_thread_eigen=false".strip()


def environment(cache: pathlib.Path) -> dict[str, str]:
    """Variables of a worker: points of one shape compile once."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
