"""A run's folder: who may write to it, what says that it is done."""

import fcntl
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config import UserError, base, flatten

# All that a run writes, and `overwrite` removes.
_FILES = (
    *("config.json", "metrics.jsonl", "result.json", "log.txt"),
    *("tensorboard", "checkpoints", "wandb_id"),
)
# Fields that may differ when a run goes on: the training is the same, but for the
# order in which a mesh adds up.
MAY_CHANGE = (
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.max_bad_steps",
    "train.diagnostics_every",
    "train.wandb_project",
    "mesh.data",
    "mesh.model",
    "mesh.slice",
    "mesh.mode",
)
# What a fresh optimizer state allows to change besides.
_OF_OPTIMIZER = ("optimizer.", "schedule.", "train.steps")
_PACKAGES = (
    *("jax", "jaxlib", "optax", "flax", "chex", "numpy", "scipy", "grain"),
    "orbax-checkpoint",
)


class WorkdirInUse(UserError):
    """Another process writes to the folder."""

    status = 4


class Workdir:
    """The folder of one run, locked for as long as this object lives.

    The lock belongs to the process: it goes when the process does, however it ends.

    Attributes:
      path: where the records are written.
      checkpoints: where the checkpoints lie.
      result: of a completed run, None where work is left.
    """

    def __init__(
        self,
        path: str,
        config,
        digest: str,
        *,
        overwrite: bool = False,
        new_optimizer: bool = False,
    ):
        """Opens or makes the folder, and changes nothing in it that was there.

        Args:
          path: of the folder.
          config: of the run to come, or to go on.
          digest: of its data.
          overwrite: remove what an earlier run left.
          new_optimizer: optimizer, schedule and steps may be others than before.

        Raises:
          WorkdirInUse: if another process holds it.
          UserError: if it cannot be written, or holds another run or a diverged one.
        """
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._may_change = MAY_CHANGE + (_OF_OPTIMIZER if new_optimizer else ())
        # The same form that config.json gives back: a tuple is a list there.
        self._fields = json.loads(json.dumps(flatten(config)))
        self._fields["data_digest"] = digest
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"--workdir: {error.filename}: {error.strerror}") from error
        self._lock = os.fdopen(lock)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise WorkdirInUse(
                f"--workdir: {self.path} is in use by another run"
            ) from error
        try:
            if overwrite:
                self._clear()
            self.result = self._previous_result()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def _clear(self) -> None:
        for name in _FILES:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _previous_result(self) -> dict[str, Any] | None:
        """The result of a completed run of the same config, None where work is left."""
        choose = "choose another folder or pass --overwrite"
        left = [name for name in _FILES if (self.path / name).exists()]
        if not left:
            return None
        try:
            recorded = json.loads(self._read("config.json"))
            # A field that is younger than the folder had its default.
            before = flatten(base()) | flatten_json(recorded["config"])
            before["data_digest"] = recorded["data_digest"]
        except (OSError, ValueError, KeyError):
            raise UserError(
                f"--workdir: {self.path} holds {left[0]} without the config of its "
                f"run, {choose}"
            ) from None
        fields = sorted(before.keys() | self._fields.keys())
        changed = [x for x in fields if before.get(x) != self._fields.get(x)]
        for field in changed:
            if not field.startswith(self._may_change):
                old, new = before.get(field), self._fields.get(field)
                fresh = field.startswith(_OF_OPTIMIZER)
                raise UserError(
                    f"--workdir: {self.path} holds a run with {field}={old!r}, "
                    f"not {new!r}; {choose}{' or --reset_optimizer' if fresh else ''}"
                )
        try:
            result = json.loads(self._read("result.json"))
        except (FileNotFoundError, ValueError):
            return None
        if result["reason"] == "diverged":
            raise UserError(
                f"--workdir: {self.path} holds a run that diverged, {choose}"
            )
        done = result["reason"] == "completed"
        goes_on = any(field.startswith(_OF_OPTIMIZER) for field in changed)
        return result if done and not goes_on else None

    def _read(self, name: str) -> str:
        return (self.path / name).read_text()

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a whole file or none."""
        temporary = self.path / f"{name}.new"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.path / name)


class Follower:
    """A `Workdir` of the processes that do not write, for as long as they run.

    They do all that the writing process does, in a folder of their own that goes with
    them; only the checkpoints are written together.

    Args:
      path: of the run's folder, whose records they read.
    """

    result = None

    def __init__(self, path: str):
        self._own = tempfile.TemporaryDirectory(prefix="optlab-")
        self.path = pathlib.Path(self._own.name)
        self.checkpoints = pathlib.Path(path) / "checkpoints"
        records = pathlib.Path(path) / "metrics.jsonl"
        if records.exists():
            shutil.copy(records, self.path)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Leaves it to the writing process."""

    def close(self) -> None:
        """Removes the folder of its own."""
        self._own.cleanup()


def open_workdir(path: str, *arguments: Any, **options: Any) -> Workdir | Follower:
    """The run's folder, which the first process opens as all of them hear.

    Args:
      path: of the folder.
      *arguments: of `Workdir`.
      **options: of `Workdir`.

    Raises:
      UserError: in all processes, where the first cannot use it.
    """
    if jax.process_count() == 1:
        return Workdir(path, *arguments, **options)
    folder, refused = None, None
    if jax.process_index() == 0:
        try:
            folder = Workdir(path, *arguments, **options)
        except UserError as error:
            refused = error
    complete = folder is not None and folder.result is not None
    told = np.int32([getattr(refused, "status", 0), complete])
    status, complete = multihost_utils.broadcast_one_to_all(told).tolist()
    if refused:
        raise refused
    if folder:
        return folder
    if status:
        heard = UserError(f"--workdir: process 0 cannot use {path}")
        heard.status = status
        raise heard
    folder = Follower(path)
    folder.result = {} if complete else None
    return folder


def flatten_json(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted path."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten_json(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def provenance() -> dict[str, Any]:
    """Where a result comes from: the code, the packages, the devices."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        commit, changes = (
            subprocess.run(
                [*git, *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        commit, changes = None, None
    return {
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
    }
