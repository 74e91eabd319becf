"""A sweep at work: its points, what became of them, and the jobs at work on them."""

import contextlib
import json
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments import records, tasks
from experiments.errors import UserError, one_line
from experiments.launchers import job
from experiments.launchers.board import Board, validation_losses
from experiments.launchers.storage import StorageAway
from experiments.launchers.trials import Trials
from experiments.launchers.watch import Watch
from experiments.points import Point
from experiments.trainer.identity import asked, difference, trained
from experiments.trainer.workdir import Workdir

_SECONDS_BETWEEN_LOOKS = 0.25
# Where other launchers have all that is left, their work is looked at so often.
_SECONDS_BETWEEN_CLAIMS = 2.0
# A worker that hangs and does not end by itself is killed after so long.
_SECONDS_TO_KILL = 30.0


def task_of(point: Point):
    """The task of a point.

    Raises:
      UserError: if it cannot be made.
    """
    try:
        return tasks.build(point.config)
    except UserError:
        raise
    except Exception as error:  # what a data set's library raises
        raise UserError(f"--config: {one_line(error)}") from error


class Standings:
    """What is asked for, and what is there, of the points in a sweep's folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._data: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._asked: dict[str, dict[str, Any]] = {}

    def asked(self, point: Point) -> dict[str, Any]:
        """What a run of the point would train today."""
        if point.name not in self._asked:
            key = json.dumps(point.config.task.to_dict(), sort_keys=True)
            if key not in self._data:
                task = task_of(point)
                self._data[key] = task.digest, task.files
            self._asked[point.name] = asked(point.config, *self._data[key])
        return self._asked[point.name]

    def result(self, point: Point) -> dict[str, Any] | None:
        """The result of a finished run of that, None where there is none."""
        found = job.finished(self.folder / point.name)
        return None if found is None or self.other(point) else found

    def other(self, point: Point) -> str:
        """How the run that is there differs from that, empty if it does not."""
        found = trained(self.folder / point.name)
        return "" if found is None else difference(found, self.asked(point))


class Sweep:
    """All points, what became of them, and the jobs at work on them."""

    def __init__(
        self,
        wanted: Sequence[Point],
        folder: pathlib.Path,
        trials: Trials,
        launcher: job.Launcher,
        hang_seconds: float | None = None,
        *,
        finished: Callable[[Point], None] = lambda point: None,
    ):
        """Takes what there is to do.

        Args:
          wanted: the points.
          folder: of the sweep.
          trials: the record of what became of them.
          launcher: starts them.
          hang_seconds: after which a silent worker is ended; None: as it takes longest.
          finished: is told of each point that has completed or diverged.
        """
        self.points = {point.name: point for point in wanted}
        self.folder = folder
        self.trials = trials
        self.launcher = launcher
        self.jobs: dict[str, job.Job] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.pruned: set[str] = set()
        self.board = Board(self)
        self.stopped = trials.storage.stopped
        trials.storage.say = self.board.line
        self._hang_seconds = hang_seconds
        self._finished = finished
        self._standings = Standings(folder)
        # Of the points that may be pruned; only what a run has added is read.
        self._losses: dict[str, tuple[records.Reader, dict[int, float]]] = {}
        self._watches: dict[str, Watch] = {}
        self._logs: dict[str, int] = {}  # where the attempt's words begin
        self._silent: dict[str, str] = {}  # what was said of a worker that hangs
        self._kill_at: dict[str, float] = {}
        self._claim_at = 0.0

    def check(self, *, overwrite: bool) -> None:
        """Refuses points that were trained with another config or other data.

        Args:
          overwrite: remove their folders' runs instead.

        Raises:
          UserError: naming the first point, and the field.
        """
        others = {name: said for name in self.points if (said := self._other_run(name))}
        if others and not overwrite:
            name, said = next(iter(others.items()))
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            raise UserError(
                f"--sweep: point {self._label(name)} {said}{more}; "
                "choose another --workdir or pass --overwrite"
            )
        for name in others:
            point, path = self.points[name], self.folder / name
            if self._standings.other(point):
                digest = self._asked(name)["data_digest"]
                Workdir(str(path), point.config, digest, overwrite=True).close()

    def _other_run(self, name: str) -> str:
        """How the run of a point differs from what is asked for, empty if it does not.

        A storage that several folders share may have what none of them has here.
        """
        said = self._standings.other(self.points[name])
        if said:
            return f"in {self.folder} holds a run with {said}"
        if self._result(name) or self._elsewhere(name):
            return ""
        for attributes in self.trials.elsewhere(name):
            said = difference(attributes["trained"], self._asked(name))
            return f"was trained in another folder with {said}"
        return ""

    def run(self) -> int:
        """Runs what is left to run, and returns the exit status."""
        with _signals(self.stopped), self.board, self.trials:
            try:
                self._settle()
                while self._left() and not self.stopped:
                    self._fill()
                    self._look()
                    if self._left():
                        time.sleep(_SECONDS_BETWEEN_LOOKS)
            except StorageAway:
                if not self.stopped:
                    raise
            finally:
                self._stop()
        if self.stopped:
            return 128 + self.stopped[0]
        return 1 if self.failed else 0

    def _left(self) -> list[str]:
        """The points that are not done, by any launcher."""
        done = self.results.keys() | self.failed.keys() | self.pruned - self.jobs.keys()
        return [name for name in self.points if name not in done]

    def _settle(self) -> None:
        """Notes what has become of points that this launcher does not work on."""
        found: dict[str, dict[str, Any]] = {}
        for name in self._left():
            if name in self.jobs:
                continue
            result = self._result(name)
            elsewhere = self._elsewhere(name)
            if result:
                found[name] = result
            elif elsewhere:
                self.results[name] = elsewhere
            elif self.trials.pruned(name, self._asked(name)):
                self.pruned.add(name)
            elif self.trials.attempts_left(name) < 1:
                self.failed[name] = self.trials.last_error(name)
        unknown = [
            name for name in found if not self.trials.recorded(name, self._asked(name))
        ]
        # The launcher that trained it is about to record it, or has gone.
        mine = self.trials.claim(unknown, len(unknown)) if unknown else []
        for name, result in found.items():
            if name in mine or name not in unknown:
                self._finish(name, result)

    def _fill(self) -> None:
        """Starts as many points as there is room for, and that nobody works on."""
        room = self.launcher.slots - len(self.jobs)
        if room < 1 or time.monotonic() < self._claim_at:
            return
        free = [name for name in self._left() if name not in self.jobs]
        taken = self.trials.claim(free, room)
        self._settle()
        left = set(self._left())
        for name in taken:
            if name not in left:
                self.trials.release(name)
        taken = [name for name in taken if name in left]
        if not taken:
            self._claim_at = time.monotonic() + _SECONDS_BETWEEN_CLAIMS
            return
        self.trials.begin(taken)
        ours = []
        for name in taken:
            if job.in_use(self.folder / name):
                self.jobs[name] = job.Elsewhere(self.folder / name)
            else:
                ours.append(self.points[name])
            self._logs[name] = job.log_size(self.folder / name)
            self._watches[name] = Watch(self.folder / name, self._hang_seconds)
        if ours:
            cache = (self.folder / "compiled").absolute()
            started = self.launcher.start(ours, self.folder, cache)
            self.jobs |= {p.name: j for p, j in zip(ours, started, strict=True)}

    def _look(self) -> None:
        """Notes which jobs have ended, and how."""
        for name, current in list(self.jobs.items()):
            status = current.status()
            if status is None:
                self._mind(name, current)
                continue
            del self.jobs[name]
            self._claim_at = 0.0
            silent = self._silent.pop(name, "")
            self._kill_at.pop(name, None)
            result = self._result(name)
            if self.trials.lost(name):
                self.pruned.discard(name)
            elif result:  # whatever killed the worker afterwards
                self._finish(name, result)
            elif status == job.IN_USE:
                self.jobs[name] = job.Elsewhere(self.folder / name)
            elif name in self.pruned:
                self.trials.prune(name, self._asked(name))
                self.board.line(f"{self._label(name)}: pruned")
            elif status in job.STOPPED and not silent:
                self.trials.release(name)
            else:
                folder = self.folder / name
                # The code may have changed under this launcher.
                other = job.finished(folder) and self._standings.other(
                    self.points[name]
                )
                error = silent or (
                    f"it was trained with {other}: start the sweep again"
                    if other
                    else job.why_it_left(folder, status, self._logs[name])
                )
                self.trials.fail(name, error)
                if not other and self.trials.attempts_left(name) > 0:
                    self.board.line(f"{self._label(name)}: {error}; tried again")
                else:
                    self.failed[name] = error
                    self.board.line(f"{self._label(name)}: failed, {error}")

    def _mind(self, name: str, current: job.Job) -> None:
        """Stops a worker that hangs, has no prospects, or is another launcher's."""
        if self.trials.lost(name):
            if name not in self._silent:
                self._silent[name] = "taken over by another launcher"
                self.board.line(f"{self._label(name)}: {self._silent[name]}")
                current.stop()
            return
        if name in self._kill_at and time.monotonic() > self._kill_at[name]:
            current.kill()
        watch = self._watches[name]
        if not current.at_work():
            watch.reset()
        silence = watch.silence()
        if silence and name not in self._silent:
            self._silent[name] = f"no progress for {silence:.0f} seconds"
            self.board.line(f"{self._label(name)}: {self._silent[name]}")
            self._kill_at[name] = time.monotonic() + _SECONDS_TO_KILL
            current.stop()
        if self.points[name].part.pruning is None or name in self.pruned:
            return
        path = self.folder / name / records.NAME
        reader, losses = self._losses.setdefault(name, (records.Reader(path), {}))
        with contextlib.suppress(OSError):
            losses |= validation_losses(reader.added())
        if self.trials.hopeless(name, losses):
            self.pruned.add(name)
            current.stop()

    def _finish(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        self.pruned.discard(name)  # it was quicker
        what = trained(self.folder / name) or {}
        if self.trials.recorded(name, what) and not self.trials.at_work(name):
            self.trials.release(name)
            self._finished(self.points[name])
            return
        self.trials.complete(name, result, what)
        self._finished(self.points[name])
        good = result["reason"] == "completed"
        said = f"val_loss {result['val_loss']:.4f}" if good else "diverged"
        self.board.line(f"{self._label(name)}: {said}")

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
            result = self._result(name)
            if result and not self.trials.lost(name):
                with contextlib.suppress(StorageAway):  # the folder has it
                    self._finish(name, result)
        self.jobs.clear()

    def _asked(self, name: str) -> dict[str, Any]:
        return self._standings.asked(self.points[name])

    def _result(self, name: str) -> dict[str, Any] | None:
        return self._standings.result(self.points[name])

    def _elsewhere(self, name: str) -> dict[str, Any] | None:
        """The result of the same in another folder that shares the storage."""
        for attributes in self.trials.elsewhere(name):
            if not difference(attributes["trained"], self._asked(name)):
                return attributes["result"]
        return None

    def _label(self, name: str) -> str:
        return f"{name} ({self.points[name].label()})"


@contextlib.contextmanager
def _signals(stopped: list[int]) -> Iterator[None]:
    """Gathers signals to stop; a second one of a kind ends the launcher at once.

    A SIGHUP that is ignored, as `nohup` does, stays so.
    """

    def remember(number, frame):
        del frame
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)

    caught = {signal.Signals(status - 128) for status in job.STOPPED}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        caught.remove(signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
