"""Makes the runs that are missing, in rounds, and writes their lines as they end."""

import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.errors import UserError
from experiments.launchers import LAUNCHERS
from experiments.launchers.running import Sweep, task_of
from experiments.launchers.storage import Storage, of_file
from experiments.launchers.trials import Trials
from experiments.points import Point
from experiments.study import arms, harvest, plan, table
from experiments.study.arms import Arm
from experiments.study.claims import Claim
from experiments.study.meanings import Meanings
from experiments.study.plan import Wanted
from experiments.study.table import Row

# A point is tried this often before it counts as failed.
ATTEMPTS = 3
# Runs that a round has at least for each worker: at its end some of them wait.
_ROUND = 6


class Study:
    """The claims, the runs that there are, and the folder where more are made.

    Attributes:
      known: the runs whose configs are today's, by key.
      failed: keys of runs that could not be made, with the reason.
    """

    def __init__(
        self,
        claims: Sequence[Claim],
        runs: pathlib.Path,
        folder: pathlib.Path,
        workers: int,
        launcher: str = "local",
    ):
        """Reads the table, and leaves out what today's configs would not train.

        Args:
          claims: in the order of their worth.
          runs: the table.
          folder: where runs are made.
          workers: how many at once.
          launcher: of `launchers.LAUNCHERS`.

        Raises:
          UserError: if the table cannot be read.
        """
        self.claims = claims
        self.failed: dict[str, str] = {}
        self._path, self._folder = runs, folder
        self._workers, self._launcher = workers, launcher
        self._rows = table.read(runs)
        self._meanings = Meanings(runs.with_name("defaults.json"))
        self._shapes: dict[str, harvest.Shapes] = {}
        self._data: dict[str, str] = {}
        self.known = {
            key: row
            for key, row in table.by_key(self._rows).items()
            if self._is_todays(row)
        }

    def run(self, minutes: float, say: Callable[[str], None] = print) -> int:
        """Makes runs until none is missing or the time is up; the exit status.

        Args:
          minutes: how long new runs may be begun and worked on; 0: without a limit.
          say: takes a line.
        """
        end = time.monotonic() + 60 * minutes if minutes else None
        before: list[Wanted] = []
        while end is None or time.monotonic() < end:
            least = _ROUND * self._workers
            wanted = plan.wanted(self.claims, self.known, least, self.failed)
            if not wanted:
                break
            if wanted == before:
                raise UserError(f"--runs: {self._path} took no line of {wanted[0].key}")
            before = wanted
            status = self._round(wanted, end)
            say(self.summary())
            if status not in (0, 1):
                timed_out = end is not None and time.monotonic() >= end
                return 0 if timed_out else status
        for text, reason in self.failed.items():
            say(f"failed: {text}: {reason}")
        return 1 if self.failed else 0

    def summary(self) -> str:
        """How far it is, in one line."""
        found = plan.sizes(self.claims, self.known)
        left = sum(size.left for size in found)
        hours = sum(size.hours for size in found) / self._workers
        return (
            f"study: {len(self.known)} runs, about {left} left, about {hours:.1f} "
            f"hours with {self._workers} workers"
        )

    def _round(self, wanted: Sequence[Wanted], end: float | None) -> int:
        """Makes the runs of a round; the sweep's exit status."""
        points: dict[str, tuple[Point, Wanted]] = {}
        for one in wanted:
            point = arms.point(one.name, one.arm, one.fields, one.seed)
            self._check_data(point)
            points[point.name] = point, one
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir: {error.filename}: {error.strerror}") from error
        every = [point for point, _ in points.values()]
        launcher = LAUNCHERS[self._launcher](self._workers, folder, {})
        trials = Trials(
            *(Storage(of_file(folder / "optuna.db")), "study", every, folder),
            attempts=ATTEMPTS,
            anew=False,
        )

        def finished(point: Point) -> None:
            self._add(point, points[point.name][1])

        sweep = Sweep(every, folder, trials, launcher, finished=finished)
        # Rows of other configs are in the table, or were never wanted.
        sweep.check(overwrite=True)
        timer = None
        if end is not None:
            left = max(end - time.monotonic(), 0)
            timer = threading.Timer(left, sweep.stopped.append, [signal.SIGTERM])
            timer.daemon = True
            timer.start()
        try:
            status = sweep.run()
        finally:
            if timer:
                timer.cancel()
        self.failed |= {points[x][1].key: said for x, said in sweep.failed.items()}
        return status

    def _add(self, point: Point, one: Wanted) -> None:
        """Writes the line of a run."""
        folder = self._folder / point.name
        if one.norms:
            harvest.keep_norms(folder, pathlib.Path(one.norms))
        if one.key in self.known:
            return
        digest = self._meanings.digest(one.arm.config, one.fields, one.seed)
        shapes = self._shapes_of(point, one.arm)
        row = harvest.row(point, one.fields, folder, digest, shapes)
        self._rows.append(row)
        self.known[one.key] = row
        self._meanings.save()
        table.write(self._path, self._rows)
        harvest.clear(folder)

    def _shapes_of(self, point: Point, arm: Arm) -> harvest.Shapes:
        """The same for all trials of an arm: what is tuned changes no shape."""
        centers = tuple(axis.center for axis in arm.search.axes)
        family = arms.key(arm.config, arm.fields(centers), 0)
        if family not in self._shapes:
            self._shapes[family] = harvest.shapes(point)
        return self._shapes[family]

    def _is_todays(self, row: Row) -> bool:
        try:
            digest = self._meanings.digest(row.config, row.overrides, row.seed)
        except UserError:  # what it asked for is no more
            return False
        return digest == row.digest

    def _check_data(self, point: Point) -> None:
        """Refuses to mix runs on other data with those of the table.

        Raises:
          UserError: that names the data.
        """
        name = _data_name(point.config.to_dict()["task"])
        if name in self._data:
            return
        digest = self._data[name] = task_of(point).digest[:12]
        for row in self.known.values():
            if row.config == point.part.config and row.data != digest:
                raise UserError(
                    f"--runs: {self._path} has runs of {row.config} on the data "
                    f"{row.data}, and here they are {digest} ({row.versions}); choose "
                    "the same versions, or another table"
                )


def _data_name(task: dict[str, Any]) -> str:
    return repr(sorted(task.items(), key=str))
