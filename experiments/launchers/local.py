"""Points run as processes of this machine, a limited number at once."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import ClassVar

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

    OPTIONS: ClassVar[Mapping[str, str] | None] = {
        "gpus": "so many GPUs are dealt out, one to each worker at a time (by "
        "CUDA_VISIBLE_DEVICES); by default every worker sees all of them",
        "threads": "1: each worker computes on one CPU core; 0: on all of them; by "
        "default 1 where there are fewer than four cores a worker",
    }
    shares_terminal = False
    blocks = False

    def __init__(self, workers: int, folder: pathlib.Path, options: Mapping):
        """Takes the options of `OPTIONS`.

        Raises:
          UserError: if one of them cannot be.
        """
        del folder
        self.slots = self.workers = workers
        # Threads of several workers on the same cores only wait for each other.
        crowded = workers > 1 and (os.cpu_count() or 1) < 4 * workers
        alone = _integer(options, "threads", int(crowded), range(2), "0 or 1")
        self._variables = {"XLA_FLAGS": _one_thread()} if alone else {}
        least = f"an integer, at least --workers={workers}"
        gpus = _integer(options, "gpus", 0, range(workers, 1 << 16), least)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else map(str, range(gpus))
        self._gpus = list(names)[:gpus]
        if len(self._gpus) < gpus:
            raise UserError(
                f"--launcher_options: gpus: given {gpus}, CUDA_VISIBLE_DEVICES is "
                f"{visible}"
            )
        self._on_gpu: dict[str, Process] = {}

    def start(
        self, points: Sequence[Point], folder: pathlib.Path, cache: pathlib.Path
    ) -> list[Process]:
        """Starts a process for each point."""
        variables = environment(cache) | self._variables
        started = []
        for point in points:
            gpu = self._free_gpu()
            own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
            log = folder / point.name / "worker.log"
            process = Process(command(point, folder), log, variables | own)
            if gpu is not None:
                self._on_gpu[gpu] = process
            started.append(process)
        return started

    def _free_gpu(self) -> str | None:
        """One that no worker has, None if they are not dealt out."""
        for gpu in self._gpus:
            user = self._on_gpu.get(gpu)
            if user is None or user.status() is not None:
                return gpu
        return None


def _integer(
    options: Mapping, name: str, default: int, allowed: range, said: str
) -> int:
    value = options.get(name, default)
    if name in options and (type(value) is not int or value not in allowed):
        raise UserError(f"--launcher_options: {name}: given {value!r}, allowed {said}")
    return value


def _one_thread() -> str:
    given = os.environ.get("XLA_FLAGS", "")
    return f"{given} --xla_cpu_multi_thread_eigen=false".strip()


def environment(cache: pathlib.Path) -> dict[str, str]:
    """Variables of a worker: points of one shape compile once."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
