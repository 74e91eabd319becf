"""A run's folder: who may write to it, what says that it is done."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import looked, records
from experiments.config import base, flatten
from experiments.errors import UserError
from experiments.trainer import extension, identity
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.lock import lock
from experiments.trainer.signals import STOPPED

# All that a run writes, and `overwrite` removes.
_FILES = (
    *("config.json", records.NAME, "result.json", "log.txt"),
    *("tensorboard", "checkpoints", "wandb_id", looked.NAME),
)
# What a fresh optimizer state allows to change besides.
_OF_OPTIMIZER = ("optimizer.", *extension.FIELDS)
_PACKAGES = (
    *("jax", "jaxlib", "optax", "flax", "numpy", "scipy", "grain"),
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
      resumes: whether the earlier part of the run has made checkpoints for sure.
      extensions: of the run up to now, as config.json has them.
      extension: the one to come, None if there is none.
    """

    def __init__(
        self,
        path: str,
        config,
        digest: str,
        files: Mapping[str, str] | None = None,
        *,
        overwrite: bool = False,
        new_optimizer: bool = False,
        extend: bool = False,
        change_schedule: bool = False,
    ):
        """Opens or makes the folder, and changes nothing in it that was there.

        Args:
          path: of the folder.
          config: of the run to come, or to go on.
          digest: of its data.
          files: a digest of each of their files, to name one that changed.
          overwrite: remove what an earlier run left.
          new_optimizer: optimizer, schedule and steps may be others than before.
          extend: the run there may get more steps, where its schedule's past stays.
          change_schedule: or where it does not.

        Raises:
          WorkdirInUse: if another process holds it.
          UserError: if it cannot be written, or holds another run or a diverged one.
        """
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.resumes = False
        self.extensions: list[dict[str, Any]] = []
        self.extension: dict[str, Any] | None = None
        self._new_optimizer = new_optimizer
        self._extend, self._change_schedule = extend, change_schedule
        self._asked = identity.asked(config, digest, files or {})
        # Both need an earlier part of the run.
        self._flag = "--extend" if extend else "--reset_optimizer"
        self._goes_on = extend or new_optimizer
        if self._goes_on and not self.path.exists():
            raise UserError(f"{self._flag}: there is no {self.path} to go on with")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._locks = lock(self.path)
        except BlockingIOError as error:
            raise WorkdirInUse(
                f"--workdir: {self.path} is in use by another run"
            ) from error
        except OSError as error:
            raise said(error, self.path) from error
        try:
            self._check_links(overwrite)
            if overwrite:
                self._clear()
            self.result = self._previous_result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        for held in self._locks:
            os.close(held)

    def _check_links(self, overwrite: bool) -> None:
        """Refuses links to folders that are away or, to overwrite, not empty."""
        for name in _FILES:
            path = self.path / name
            if not path.is_symlink():
                continue
            if not path.exists():
                raise UserError(
                    f"--workdir: {path} is a link to {os.readlink(path)}, which is "
                    "not there; mount or make it, or remove the link"
                )
            if overwrite and path.is_dir() and not _is_empty_folder(path):
                raise UserError(
                    f"--workdir: {path} is a link to {os.readlink(path)}, and "
                    "--overwrite removes nothing there; empty it, or remove the link"
                )

    def _clear(self) -> None:
        """Removes all that an earlier run left, or nothing where one part must stay."""
        aside, moved = self.path / ".overwritten", []
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name in _FILES:
                path = self.path / name
                if os.path.lexists(path) and not (path.is_symlink() and path.is_dir()):
                    path.rename(aside / name)
                    moved.append(name)
        except OSError as error:
            for name in moved:
                (aside / name).rename(self.path / name)
            raise said(error, self.path) from error
        try:
            shutil.rmtree(aside)
        except OSError as error:
            raise said(error, aside) from error

    def _previous_result(self) -> dict[str, Any] | None:
        """The result of a completed run of the same config, None where work is left."""
        choose = "choose another folder or pass --overwrite"
        # A log alone is of a start that came to nothing; a link to an empty folder is
        # kept, and may be made before a run.
        names = [name for name in _FILES if name != "log.txt" and self._holds(name)]
        left = [x for x in names if not _is_empty_folder(self.path / x)]
        if not left:
            if self._goes_on:
                raise UserError(f"{self._flag}: {self.path} holds no run to go on with")
            return None
        recorded = self._read("config.json", "put the run's own there")
        if recorded is None:
            raise UserError(
                f"--workdir: {self.path} holds {left[0]} without the config of its "
                "run; put config.json back or choose another folder"
            )
        before = flatten(base()) | identity.flatten_json(recorded["config"])
        changes = identity.changes(identity.recorded(recorded), self._asked)
        of_optimizer = {x for x in changes if x.startswith(_OF_OPTIMIZER)}
        may_change = of_optimizer if self._new_optimizer else set()
        if self._extend:
            may_change = {x for x in changes if x.startswith(extension.FIELDS)}
        for field, said_of in changes.items():
            if field in may_change:
                continue
            fresh = " or --reset_optimizer" if field in of_optimizer else ""
            more = " or --extend" if field == "train.steps" else ""
            raise UserError(
                f"--workdir: {self.path} holds a run with {said_of}; "
                f"{choose}{fresh}{more}"
            )
        found = recorded.get("extensions")
        self.extensions = found if isinstance(found, list) else []
        result = self._read("result.json", "remove it, and the run goes on") or {}
        reason = result.get("reason")
        if reason == "diverged":
            raise UserError(
                f"--workdir: {self.path} holds a run that diverged, {choose}"
            )
        done = reason == "completed" and result["steps"] == before["train.steps"]
        if done and not of_optimizer:
            return result
        last = self._look_for_checkpoints(before, reason)
        if self._new_optimizer:
            checkpoints = Checkpoints(self.checkpoints, print, read_only=True)
            if not checkpoints.steps():
                where = f"{self.path} holds no checkpoint"
                raise UserError(f"{self._flag}: {where} to go on with")
        if self._extend and of_optimizer:
            self.extension = extension.extension(
                *(before, self._asked, max(last, result.get("steps", 0))),
                change_schedule=self._change_schedule,
            )
        return None

    def _holds(self, name: str) -> bool:
        """Whether it is there; an error of the machine is one, not a no."""
        try:
            (self.path / name).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise said(error, self.path / name) from error
        return True

    def _look_for_checkpoints(self, before: dict[str, Any], reason: Any) -> int:
        """Finds out whether there must be some; refuses where their folder is away.

        Returns:
          The last step that the records have.
        """
        try:
            last = records.last(self.path / records.NAME).get("step", 0)
        except OSError as error:
            raise said(error, self.path / records.NAME) from error
        # The first one is waited for, so records of later steps say that it is whole.
        every = before["train.checkpoint_every"]
        ended = last >= before["train.steps"]
        past_first = 0 < every < last
        self.resumes = ended or past_first or reason in ("completed", *STOPPED)
        if self.resumes and not self._holds("checkpoints"):
            raise UserError(
                f"--workdir: {self.path} holds records up to step {last}, but its "
                "checkpoints are away; put them back or choose another folder, or "
                "pass --overwrite to begin with step 1"
            )
        return last

    def _read(self, name: str, advice: str) -> dict[str, Any] | None:
        """What a file says that a run wrote; None if it is missing.

        Raises:
          UserError: if it cannot be read, or is not what a run writes.
        """
        path = self.path / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise said(error, path) from error
        try:
            found = json.loads(content)
            if _IS_WHOLE[name](found):
                return found
        except (ValueError, RecursionError):
            pass
        shown = content if len(content) < 40 else content[:40] + b"..."
        raise UserError(
            f"--workdir: {path} is not what a run writes: {str(shown)[1:]}; {advice}"
        )

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a whole file or none."""
        temporary = self.path / f"{name}.new"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.path / name)


def _is_empty_folder(path: pathlib.Path) -> bool:
    try:
        return path.is_dir() and not os.listdir(path)
    except OSError as error:
        raise said(error, path) from error


def _is_config(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("config"), dict)
        and isinstance(found.get("data_digest"), str)
    )


def _is_result(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    loss, steps = found.get("val_loss"), found.get("steps")
    number = isinstance(loss, int | float) and not isinstance(loss, bool)
    known = found.get("reason") in ("completed", "diverged", "failed", *STOPPED)
    good = number or found.get("reason") != "completed"
    return known and good and type(steps) is int


_IS_WHOLE = {"config.json": _is_config, "result.json": _is_result}


def said(error: OSError, path: str | pathlib.Path) -> UserError:
    """An error of the machine as one line."""
    reason = error.strerror or type(error).__name__
    return UserError(f"--workdir: {error.filename or path}: {reason}")


class Follower:
    """A `Workdir` of the processes that do not write, for as long as they run.

    They do all that the writing process does, in a temporary folder that goes with
    them; only the checkpoints are written together.

    Args:
      path: of the run's folder, whose records they read.
    """

    result = None
    resumes = False
    extensions: Sequence[dict[str, Any]] = ()
    extension = None

    def __init__(self, path: str):
        self._own = tempfile.TemporaryDirectory(prefix="optlab-")
        self.path = pathlib.Path(self._own.name)
        self.checkpoints = pathlib.Path(path) / "checkpoints"
        written = pathlib.Path(path) / records.NAME
        if written.exists():
            shutil.copy(written, self.path)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Leaves it to the writing process."""

    def close(self) -> None:
        """Removes its temporary folder."""
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
    told = np.int32(
        [getattr(refused, "status", 0), complete, getattr(folder, "resumes", False)]
    )
    status, complete, resumes = multihost_utils.broadcast_one_to_all(told).tolist()
    if refused:
        raise refused
    if folder:
        return folder
    if status:
        heard = UserError(f"--workdir: process 0 cannot use {path}")
        heard.status = status
        raise heard
    folder = Follower(path)
    folder.result, folder.resumes = {} if complete else None, bool(resumes)
    return folder


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
