"""Checkpoints: the whole state and the place in the data, written beside the training.

Parameters, optimizer and the rest are separate items, to be read alone. Factors
that a mesh keeps by bucket are saved so, and `place` says which those are.

Each is a separate folder that gets its name when it is whole, so a killed process
leaves none that is half written. What a disk or a hand changes later shows in the
checksums: one word per array, and one for the place in the data, saved with them.

A file that the machine cannot read is no corrupt one: that is an error, and nothing is
renamed.
"""

import errno
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.trainer import checksums, restacking
from experiments.trainer.state import TrainState, tree_bytes

KEEP = 2
# Fields of `TrainState` that are items by themselves; the others are one together.
_ALONE = ("params", "opt_state")
_REST = tuple(name for name in TrainState._fields if name not in _ALONE)
# Free bytes that a checkpoint must find, as a multiple of its arrays' own.
_ROOM = 1.05


# What opening a file says where the checkpoint itself is at fault.
_CORRUPT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class CheckpointError(OSError):
    """A checkpoint could not be written, or its files not be read."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where they lie, one folder a step; the same in all processes.
      say: takes a line for the user.
      read_only: leave the folder as it is, for a run may be at work there.
      keep: how many to keep, the newest ones; 0: all.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        say: Callable[[str], None],
        *,
        read_only: bool = False,
        keep: int = KEEP,
    ):
        self._keep = keep
        self.folder = folder.absolute()
        self._say = say
        self._read_only = read_only
        self._open_manager = None

    @property
    def _manager(self):
        """Orbax's, opened at need: importing it takes seconds."""
        if self._open_manager is None:
            import orbax.checkpoint as ocp

            # What goes wrong is raised too, and then said in one line.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
            _hush_abandoned()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None if self._read_only else self._keep or None,
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
            )
            self._open_manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_names=(*_ALONE, "rest", "place"),
            )
        return self._open_manager

    def save(self, state: TrainState, position: dict) -> None:
        """Begins to write; the arrays may be donated as soon as this returns.

        Args:
          state: what the training carries.
          position: `get_state()` of the data.

        Raises:
          CheckpointError: this or an earlier one could not be written.
        """
        from orbax.checkpoint import args

        items = _items(_without_key(state))
        step = int(state.step)
        buckets = restacking.buckets_of(state.opt_state)
        words = checksums.of_arrays(items) | {
            "data": checksums.of_place(step, position),
            "buckets": checksums.of_place(step, buckets),
        }
        place = {"data": position, "checksums": words, "buckets": buckets}
        self.wait()
        try:
            self.folder.mkdir(exist_ok=True)
            first = not self.steps()
            free, need = shutil.disk_usage(self.folder).free, tree_bytes(items)
            if free < need * _ROOM:
                reason = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes, {need:,} needed"
                raise CheckpointError(errno.ENOSPC, reason, str(self.folder))
            saved = {name: args.StandardSave(item) for name, item in items.items()}
            self._manager.save(
                step,
                args=args.Composite(place=args.JsonSave(place), **saved),
            )
        except CheckpointError:
            raise
        except Exception as error:
            raise _plain(error, self.folder) from error
        if first:
            self.wait()  # so that records of later steps say that there is one

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, the newest first; corrupt ones too."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        found = [re.fullmatch(r"(?:spoilt_)?(\d+)", name) for name in names]
        return sorted({int(match[1]) for match in found if match}, reverse=True)

    def restore(
        self,
        abstract: TrainState,
        *,
        only: Sequence[str] = (*_ALONE, "rest"),
    ) -> tuple[TrainState, dict] | None:
        """The newest checkpoint that is whole; newer ones are then set aside.

        Args:
          abstract: shapes, dtypes and shardings of the state.
          only: items to read: "params", "opt_state", "rest". Fields of the others stay
            as they are in `abstract`.

        Returns:
          The state and the position of the data, None where there is no checkpoint.

        Raises:
          CheckpointError: the machine cannot read one.
        """
        try:
            steps = (
                sorted(self._manager.all_steps(), reverse=True) if self.steps() else []
            )
        except Exception as error:
            raise _plain(error, self.folder) from error
        corrupt: dict[int, str] = {}
        for step in steps:
            found, failed, reason = None, None, "another process cannot read it"
            try:
                found = self._restore(step, abstract, set(only))
            except Exception as error:  # whatever a corrupt file makes orbax raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                failed = _machine_error(error, self.folder / str(step))
            worst = _everywhere(2 if failed else int(found is None))
            if worst == 2:
                raise failed or CheckpointError(
                    errno.EIO, "another process cannot read it", str(self.folder)
                )
            if not worst:
                self._set_aside(corrupt)
                return found
            corrupt[step] = reason
        for step, reason in corrupt.items():
            self._say(f"checkpoint of step {step} is corrupt: {reason}")
        return None

    def read(
        self,
        step: int,
        abstract: TrainState,
        *,
        only: Sequence[str] = (*_ALONE, "rest"),
    ) -> tuple[TrainState, dict]:
        """The checkpoint of a step; the folder stays as it is.

        Args:
          step: one of `steps()`.
          abstract: as of `restore`.
          only: likewise.

        Raises:
          CheckpointError: the machine cannot read it, or it is corrupt.
        """
        try:
            return self._restore(step, abstract, set(only))
        except Exception as error:  # whatever a corrupt file makes orbax raise
            raise _plain(error, self.folder / str(step)) from error

    def _set_aside(self, corrupt: dict[int, str]) -> None:
        """Renames corrupt checkpoints, now that there is a whole one."""
        for step, reason in corrupt.items():
            self._say(f"checkpoint of step {step} is corrupt, set aside: {reason}")
        if not corrupt or self._read_only:
            return
        if jax.process_index() == 0:
            for step in corrupt:
                aside = self.folder / f"spoilt_{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        _everywhere(0)  # the others wait until they are gone
        self._manager.reload()

    def _restore(
        self, step: int, abstract: TrainState, names: set[str]
    ) -> tuple[TrainState, dict]:
        from orbax.checkpoint import args

        read = self._manager.restore
        place = read(step, args=args.Composite(place=args.JsonRestore()))["place"]
        buckets = place.get("buckets", {})
        whole = _items(_without_key(abstract), buckets)
        wanted = {name: item for name, item in whole.items() if name in names}
        asked = {name: args.StandardRestore(item) for name, item in wanted.items()}
        found = read(step, args=args.Composite(**asked))
        items = {name: found[name] for name in wanted}
        for name, is_now in checksums.of_arrays(items).items():
            if is_now != place["checksums"][name]:
                raise ValueError(f"{name} is not what was saved")
        # A checkpoint that is older than these checksums has none.
        for name, told, what in (
            ("data", place["data"], "the place in the data"),
            ("buckets", buckets, "the list of buckets"),
        ):
            saved = place["checksums"].get(name)
            if saved is not None and saved != checksums.of_place(step, told):
                raise ValueError(f"{what} is not what was saved")
        state = abstract._replace(**items.pop("rest", {}))
        if "rest" in names:
            state = _with_key(state)
        if "rest" in names and int(state.step) != step:
            raise ValueError(f"it holds the state of step {int(state.step)}")
        if "opt_state" in names:
            items["opt_state"] = restacking.restacked(
                items["opt_state"], abstract.opt_state, buckets
            )
        return state._replace(**items), place["data"]

    def wait(self) -> None:
        """Returns when what was begun is on the disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._open_manager is not None:
            try:
                self._open_manager.wait_until_finished()
            except Exception as error:
                raise _plain(error, self.folder) from error

    def close(self) -> None:
        """Ends the writers; call `wait` first to hear of what went wrong."""
        if self._open_manager is not None:
            try:
                self._open_manager.close()
            except Exception as error:
                raise _plain(error, self.folder) from error
            finally:
                self._open_manager = None


def _hush_abandoned() -> None:
    """Keeps off the screen what is no news after a failed read or write.

    Orbax works on all arrays at once, and abandons the others when one fails: each then
    complains that its event loop is closed, at any later time.
    """
    if sys.excepthook.__name__ == "_quieter":
        return

    def wrap(said: Callable, error_of: Callable) -> Callable:
        def _quieter(*what):
            if str(error_of(*what)) != "Event loop is closed":
                said(*what)

        return _quieter

    sys.excepthook = wrap(sys.excepthook, lambda kind, error, trace: error)
    sys.unraisablehook = wrap(sys.unraisablehook, _abandoned)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _abandoned(unraisable) -> Any:
    """What was raised, "Event loop is closed" where one of orbax's readers is left."""
    code = getattr(unraisable.object, "cr_code", None)
    orbax = code is not None and "orbax" in code.co_filename
    return "Event loop is closed" if orbax else unraisable.exc_value


def _plain(error: Exception, folder: pathlib.Path) -> CheckpointError:
    """The system's own word for it, where there is one in what orbax raises."""
    code = _code_of(error)
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return CheckpointError(
        code or errno.EIO, os.strerror(code) if code else reason, str(folder)
    )


def _code_of(error: BaseException | None) -> int | None:
    """The `errno` in an exception or in what led to it."""
    while error is not None:
        told = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(told[1]) if told else getattr(error, "errno", None)
        if code is not None:
            return code
        error = error.__cause__ or error.__context__
    return None


def _machine_error(error: Exception, folder: pathlib.Path) -> CheckpointError | None:
    """Why the machine cannot read a checkpoint; None if the files are to blame.

    Orbax calls a folder that it may not open one that is not there, so every file is
    tried.
    """
    code = _code_of(error)
    if code is not None and code not in _CORRUPT:
        return _plain(error, folder)
    try:
        for place, _, names in os.walk(folder, onerror=_raise):
            for name in names:
                with open(os.path.join(place, name), "rb") as file:
                    while file.read(1 << 20):
                        pass
    except OSError as found:
        if found.errno not in _CORRUPT:
            return CheckpointError(
                found.errno, found.strerror, found.filename or str(folder)
            )
    return None


def _raise(error: OSError) -> None:
    raise error


def _everywhere(state: int) -> int:
    """The worst state of all processes; each waits for the others."""
    if jax.process_count() == 1:
        return state
    return int(np.max(multihost_utils.process_allgather(np.int32(state))))


def _items(state: TrainState, buckets: dict[str, Any] | None = None) -> dict[str, Any]:
    """The state by the items of a checkpoint; its shapes, if that has these buckets."""
    items = {name: getattr(state, name) for name in _ALONE}
    if buckets is None:
        items["opt_state"] = restacking.packed(state.opt_state)
    else:
        items["opt_state"] = restacking.as_saved(state.opt_state, buckets)
    return items | {"rest": {name: getattr(state, name) for name in _REST}}


def _without_key(state: TrainState) -> TrainState:
    """The state with its key as plain words."""
    if isinstance(state.key, jax.ShapeDtypeStruct):
        words = jax.eval_shape(jax.random.key_data, state.key)
        return state._replace(key=words.update(sharding=state.step.sharding))
    return state._replace(key=jax.random.key_data(state.key))


def _with_key(arrays: TrainState) -> TrainState:
    return arrays._replace(key=jax.random.wrap_key_data(arrays.key))
