"""Points run as an array of SLURM jobs, through submitit.

A job's end is read from its point's folder first, then from the queue: on a cluster
without accounting a cancelled job is in no state at all, and one that was preempted or
requeued has left an end behind and runs again.
"""

import os
import pathlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from experiments.errors import UserError
from experiments.launchers.job import FINISHED, command, finished
from experiments.launchers.local import environment
from experiments.points import Point

_SECONDS_BETWEEN_QUERIES = 10.0
_GONE = 1


def work(words: Sequence[str], variables: Mapping[str, str], log: str) -> int:
    """What a job does: the training as a separate process, to take the signals."""
    with open(log, "a") as file:
        return subprocess.run(
            words, env=os.environ | variables, stdout=file, stderr=file, check=False
        ).returncode


class Queue:
    """The states of the user's jobs, asked for once for all of them."""

    def __init__(self):
        self._asked = time.monotonic()
        self._states: dict[str, str] | None = None

    def lacks(self, job_id: str, submitted: float) -> bool:
        """Whether SLURM knows no such job any more, waiting or running."""
        now = time.monotonic()
        if now - self._asked > _SECONDS_BETWEEN_QUERIES:
            listed = subprocess.run(
                ["squeue", "--noheader", "--me", "--array", "--format=%i %T"],
                capture_output=True,
                text=True,
                check=False,
            )
            # No answer says nothing about the jobs.
            lines = [line.split() for line in listed.stdout.splitlines()]
            found = {line[0]: line[-1] for line in lines if line}
            self._states = None if listed.returncode else found
            self._asked = now
        known = self._states is not None and self._asked > submitted
        return known and job_id not in self._states

    def runs(self, job_id: str) -> bool:
        """Whether the last answer had the job as a running one."""
        return (self._states or {}).get(job_id) == "RUNNING"


class SlurmJob:
    """One element of the array."""

    def __init__(self, job: Any, folder: pathlib.Path, queue: Queue):
        self._job = job
        self._folder = folder
        self._queue = queue
        self._submitted = time.monotonic()

    def status(self) -> int | None:
        """None while it waits or works, then the exit status."""
        result = finished(self._folder)
        if result:
            return FINISHED[result["reason"]]
        if not self._queue.lacks(self._job.job_id, self._submitted):
            return None
        if self._job.paths.result_pickle.exists():
            try:
                return self._job.result()
            except Exception:  # whatever the job raised: it has failed
                return _GONE
        return _GONE

    def at_work(self) -> bool:
        """Whether it waits in the queue no longer."""
        return self._queue.runs(self._job.job_id)

    def stop(self) -> None:
        """Cancels it; SLURM sends SIGTERM first, and SIGKILL later."""
        self._job.cancel(check=False)

    kill = stop


class Slurm:
    """Submits all points there are; the array runs `workers` of them at once."""

    slots = 1000  # SLURM's MaxArraySize by default is 1001
    # None: submitit knows them.
    OPTIONS: ClassVar[Mapping[str, str] | None] = None
    shares_terminal = False
    blocks = False

    def __init__(self, workers: int, folder: pathlib.Path, options: Mapping):
        """Takes submitit's names of sbatch's options, such as `partition` or `time`.

        Raises:
          UserError: if there is no SLURM, or it has no such option.
        """
        import submitit

        if "array_parallelism" in options:
            raise UserError(
                "--launcher_options: array_parallelism is what --workers gives"
            )
        self.workers = workers
        try:
            self._executor = submitit.SlurmExecutor(folder=folder / "slurm" / "%j")
            self._executor.update_parameters(
                **{"array_parallelism": workers, "job_name": "sweep", "time": 1440}
                | options
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"--launcher=slurm: {error}".splitlines()[0]) from error
        self._queue = Queue()

    def start(
        self, points: Sequence[Point], folder: pathlib.Path, cache: pathlib.Path
    ) -> list[SlurmJob]:
        """Submits the points as one array."""
        for point in points:
            (folder / point.name).mkdir(parents=True, exist_ok=True)
        jobs = self._executor.map_array(
            work,
            [command(point, folder) for point in points],
            [environment(cache)] * len(points),
            [str(folder / point.name / "worker.log") for point in points],
        )
        return [
            SlurmJob(job, folder / point.name, self._queue)
            for job, point in zip(jobs, points, strict=True)
        ]
