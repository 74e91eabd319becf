"""Trains the points of a sweep, a limited number at once; a killed one goes on.

    python -m experiments.sweep --sweep=configs/sweeps/optimizers.py --launcher=local \\
        --workers=2

Every point has a folder in the workdir, named by a hash of its overrides. Points that
completed or diverged are not run again; a point that fails is tried twice more.
`--config.*` changes all points. Optuna keeps the trials: `optuna-dashboard
sqlite:///runs/optimizers/optuna.db` shows them while they run.

Exit status: 0 all points completed or diverged, 1 some failed, 2 bad input, 4 the
workdir is in use, 130 and 143 stopped by a signal.
"""

import contextlib
import fcntl
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import command, points, records
from experiments.config import UserError
from experiments.launchers import LAUNCHERS, job
from experiments.launchers.board import Board, validation_losses
from experiments.launchers.trials import Trials
from experiments.points import Point
from experiments.tasks import TASKS

_FLAGS = flags.FlagValues()
_SWEEP = flags.DEFINE_string(
    "sweep", None, "sweep file, such as configs/sweeps/*.py", flag_values=_FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "the sweep's folder, made if missing; runs/NAME for a sweep file NAME.py",
    flag_values=_FLAGS,
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "inline",
    list(LAUNCHERS),
    "where points run: inline, local or slurm",
    flag_values=_FLAGS,
)
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "points at once", lower_bound=1, flag_values=_FLAGS
)
_STORAGE = flags.DEFINE_string(
    "storage",
    None,
    "Optuna's storage, instead of sqlite in the workdir",
    flag_values=_FLAGS,
)
_SLURM = flags.DEFINE_list(
    "slurm",
    [],
    "sbatch's options, such as partition=gpu,time=600,gpus_per_node=1",
    flag_values=_FLAGS,
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "list the points and what they cost", flag_values=_FLAGS
)
_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed",
    False,
    "try points again that have failed for good",
    flag_values=_FLAGS,
)

# A point is tried this often before it counts as failed.
ATTEMPTS = 3
_SECONDS_BETWEEN_LOOKS = 0.25


class Sweep:
    """All points, what became of them, and the jobs at work on them."""

    def __init__(
        self, wanted: Sequence[Point], folder: pathlib.Path, trials: Trials, launcher
    ):
        self.points = {point.name: point for point in wanted}
        self.folder = folder
        self.trials = trials
        self.launcher = launcher
        self.jobs: dict[str, job.Job] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.pruned: set[str] = set()
        self.stopped: list[int] = []
        # Of the points that may be pruned; only what a run has added is read.
        self._losses: dict[str, tuple[records.Reader, dict[int, float]]] = {}
        self.board = Board(self)

    def run(self) -> int:
        """Runs what is left to run, and returns the exit status."""
        for name in self.points:
            result = job.finished(self.folder / name)
            if result:
                self._finish(name, result)
            elif self.trials.pruned(name):
                self.pruned.add(name)
            elif self.trials.attempts_left(name) < 1:
                self.failed[name] = self.trials.last_error(name)
        done = {*self.results, *self.failed, *self.pruned}
        self.trials.enqueue([p for name, p in self.points.items() if name not in done])
        with _signals(self.stopped), self.board:
            try:
                while not self.stopped and (self._fill() or self.jobs):
                    self._look()
                    if self.jobs:
                        time.sleep(_SECONDS_BETWEEN_LOOKS)
            finally:
                self._stop()
        if self.stopped:
            return 128 + self.stopped[0]
        return 1 if self.failed else 0

    def _fill(self) -> bool:
        """Starts as many points as there is room for; whether any was started."""
        asked = []
        while len(self.jobs) + len(asked) < self.launcher.slots:
            name = self.trials.ask()
            if name is None:
                break
            if job.in_use(self.folder / name):
                self.jobs[name] = job.Elsewhere(self.folder / name)
            else:
                asked.append(self.points[name])
        if asked:
            cache = (self.folder / "compiled").absolute()
            started = self.launcher.start(asked, self.folder, cache)
            self.jobs |= {p.name: j for p, j in zip(asked, started, strict=True)}
        return bool(asked)

    def _look(self) -> None:
        """Notes which jobs have ended, and how."""
        for name, current in list(self.jobs.items()):
            status = current.status()
            if status is None:
                self._prune(name)
                continue
            del self.jobs[name]
            result = job.finished(self.folder / name)
            if result:  # whatever killed the worker afterwards
                self._finish(name, result)
            elif status == job.IN_USE:
                self.jobs[name] = job.Elsewhere(self.folder / name)
            elif name in self.pruned:
                self.trials.prune(name)
                self.board.line(f"{self._label(name)}: pruned")
            elif status in job.STOPPED:
                self.trials.again(name)
            else:
                error = _error(self.folder / name, status)
                self.trials.fail(name, error)
                if self.trials.attempts_left(name) > 0:
                    self.board.line(f"{self._label(name)}: {error}; tried again")
                    self.trials.enqueue([self.points[name]])
                else:
                    self.failed[name] = error
                    self.board.line(f"{self._label(name)}: failed, {error}")

    def _prune(self, name: str) -> None:
        """Stops a point whose losses are too high among those of its part."""
        if self.points[name].part.pruning is None or name in self.pruned:
            return
        path = self.folder / name / records.NAME
        reader, losses = self._losses.setdefault(name, (records.Reader(path), {}))
        with contextlib.suppress(OSError):
            losses |= validation_losses(reader.added())
        if self.trials.hopeless(name, losses):
            self.pruned.add(name)
            self.jobs[name].stop()

    def _finish(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        self.pruned.discard(name)  # it was quicker
        if self.trials.complete(self.points[name], result):
            good = result["reason"] == "completed"
            what = f"val_loss {result['val_loss']:.4f}" if good else "diverged"
            self.board.line(f"{self._label(name)}: {what}")

    def _stop(self) -> None:
        """Lets the jobs write their checkpoints, and waits for them."""
        for current in self.jobs.values():
            current.stop()
        if self.jobs:
            self.board.line(f"stopping {len(self.jobs)} points; again to leave at once")
        waiting = {
            name: current
            for name, current in self.jobs.items()
            if not isinstance(current, job.Elsewhere)
        }
        while any(current.status() is None for current in waiting.values()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        for name in waiting:
            result = job.finished(self.folder / name)
            if result:
                self._finish(name, result)
        self.jobs.clear()

    def _label(self, name: str) -> str:
        return f"{name} ({self.points[name].label()})"


@contextlib.contextmanager
def _signals(stopped: list[int]) -> Iterator[None]:
    """Gathers SIGINT and SIGTERM; a second one of a kind ends the launcher at once."""

    def remember(number, frame):
        del frame
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {n: signal.signal(n, remember) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error(folder: pathlib.Path, status: int) -> str:
    """Why a worker left, in one line."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    try:
        lines = (folder / "worker.log").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else f"exit status {status}"


def cost(wanted: Sequence[Point], folder: pathlib.Path | None, workers: int) -> str:
    """What the points that are left cost, in one line.

    The time comes from the points that have finished in the folder, if there are any.
    """
    sizes: dict[str, tuple[int, int]] = {}
    tokens = flops = steps = 0
    seconds = []
    left = 0
    for point in wanted:
        result = job.finished(folder / point.name) if folder else None
        if result:
            seconds.append(result["total_seconds"] / max(result["steps"], 1))
            continue
        config = point.config
        shape = {"task": config.task, "model": config.model}
        key = str(shape) + str(config.train.batch_size)
        if key not in sizes:
            try:
                task = TASKS[config.task.name](config)
            except (ValueError, TypeError) as error:
                raise UserError(f"--config: {error}".splitlines()[0]) from error
            tree = jax.eval_shape(task.init, jax.random.key(0))
            count = sum(leaf.size for leaf in jax.tree.leaves(tree))
            sizes[key] = task.tokens_per_batch, count
        batch, parameters = sizes[key]
        left += 1
        steps += config.train.steps
        tokens += config.train.steps * batch
        flops += 6 * parameters * config.train.steps * batch
    text = (
        f"{left} of {len(wanted)} points left: {steps:,} steps, {tokens:,} tokens, "
        f"about {flops:.1e} FLOPs (6 x parameters x tokens)"
    )
    if seconds and left:
        hours = float(np.mean(seconds)) * steps / workers / 3600
        text += f", about {hours:.2g} hours with {workers} workers"
    return text


def _dry_run(wanted: Sequence[Point], folder: pathlib.Path) -> None:
    for point in wanted:
        result = job.finished(folder / point.name)
        state = f"  {result['reason']}" if result else ""
        print(f"{point.name}  {point.label()}{state}")
    print(cost(wanted, folder, _WORKERS.value))


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """One launcher at a time: it alone asks Optuna for trials."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".sweep_lock").open("w")
    except OSError as error:
        raise UserError(f"--workdir: {error.filename}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            wrong = UserError(f"--workdir: {folder} is in use by another sweep")
            wrong.status = job.IN_USE
            raise wrong from error
        yield


def main(positional: list[str], overrides: list[str]) -> int:
    """Runs the sweep, and returns the exit status."""
    command.no_arguments(positional)
    command.require(sweep=_SWEEP.value)
    wanted = points.load(_SWEEP.value, overrides)
    name = pathlib.Path(_SWEEP.value).stem
    folder = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    if _DRY_RUN.value:
        _dry_run(wanted, folder)
        return 0
    parameters = {}
    for word in _SLURM.value:
        option, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--slurm: given {word!r}, allowed name=value")
        parameters[option] = int(value) if value.isdigit() else value
    cost(wanted[:1], None, 1)  # a config that cannot be trained stops here
    launcher = LAUNCHERS[_LAUNCHER.value](_WORKERS.value, folder, parameters)
    storage = _STORAGE.value or f"sqlite:///{folder / 'optuna.db'}"
    with _locked(folder):
        trials = Trials(
            storage, name, wanted, attempts=ATTEMPTS, anew=_RETRY_FAILED.value
        )
        sweep = Sweep(wanted, folder, trials, launcher)
        status = sweep.run()
    sweep.board.summary()
    return status


if __name__ == "__main__":
    command.run(main, _FLAGS)
