"""Checkpoints: the whole state and the place in the data, written beside the training.

Each is a folder of its own that gets its name when it is whole, so a killed process
leaves none that is half written. What a disk or a hand spoils later shows in the
checksums: one word per array, saved with it, that any changed bit changes.
"""

import errno
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trainer.state import TrainState, leaf_names, tree_bytes

KEEP = 2
# Free bytes that a checkpoint must find, as a multiple of its arrays' own.
_ROOM = 1.05


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where they lie, one folder a step.
      say: takes a line for the user.
    """

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None]):
        self.folder = folder.absolute()
        self._say = say
        self._open_manager = None

    @property
    def _manager(self):
        """Orbax's, opened at need: importing it takes seconds."""
        if self._open_manager is None:
            import orbax.checkpoint as ocp

            # What goes wrong is raised here too, and then said in one line.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEEP, cleanup_tmp_directories=True
            )
            self._open_manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=("state", "place")
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

        arrays = _without_key(state)
        place = {"data": position, "checksums": _checksums(arrays)}
        self.wait()
        try:
            self.folder.mkdir(exist_ok=True)
            free, need = shutil.disk_usage(self.folder).free, tree_bytes(arrays)
            if free < need * _ROOM:
                reason = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes, {need:,} needed"
                raise CheckpointError(errno.ENOSPC, reason, str(self.folder))
            self._manager.save(
                int(state.step),
                args=args.Composite(
                    state=args.StandardSave(arrays), place=args.JsonSave(place)
                ),
            )
        except CheckpointError:
            raise
        except Exception as error:
            raise _plain(error, self.folder) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
        """The newest checkpoint that is whole; those that are not are set aside.

        Args:
          abstract: shapes, dtypes and shardings of the state.

        Returns:
          The state and the position of the data, None where there is no checkpoint.
        """
        if not self.folder.is_dir():
            return None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(step, abstract)
            except Exception as error:  # whatever a spoilt file makes orbax raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                _hush_abandoned_readers()
                self._say(f"checkpoint of step {step} is spoilt, set aside: {reason}")
                aside = self.folder / f"spoilt_{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
                self._manager.reload()
        return None

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
        from orbax.checkpoint import args

        found = self._manager.restore(
            step,
            args=args.Composite(
                state=args.StandardRestore(_without_key(abstract)),
                place=args.JsonRestore(),
            ),
        )
        arrays, place = found["state"], found["place"]
        sums = _checksums(arrays)
        for name, was in place["checksums"].items():
            if sums[name] != was:
                raise ValueError(f"{name} is not what was saved")
        return _with_key(arrays), place["data"]

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


def _hush_abandoned_readers() -> None:
    """Keeps off the screen what is no news after a failed read.

    Orbax reads all arrays at once, and abandons the others when one cannot be read:
    each then complains that its event loop is closed, at any later time.
    """
    said = sys.unraisablehook

    def hook(unraisable):
        code = getattr(unraisable.object, "cr_code", None)
        abandoned = code is not None and "orbax" in code.co_filename
        if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
            said(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _plain(error: Exception, folder: pathlib.Path) -> CheckpointError:
    """The system's own word for it, where there is one in what orbax raises."""
    told = re.search(r"os_error_code='(\d+)'", str(error))
    code = int(told[1]) if told else getattr(error, "errno", None)
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return CheckpointError(
        code or errno.EIO, os.strerror(code) if code else reason, str(folder)
    )


def _without_key(state: TrainState) -> TrainState:
    """The state with its key as plain words."""
    if isinstance(state.key, jax.ShapeDtypeStruct):
        words = jax.eval_shape(jax.random.key_data, state.key)
        return state._replace(key=words.update(sharding=state.step.sharding))
    return state._replace(key=jax.random.key_data(state.key))


def _with_key(arrays: TrainState) -> TrainState:
    return arrays._replace(key=jax.random.wrap_key_data(arrays.key))


def _checksums(arrays: Any) -> dict[str, int]:
    """One word per array, by its path; the same on any mesh."""
    sums = jax.device_get(_sum_all(jax.tree.leaves(arrays)))
    return dict(zip(leaf_names(arrays), map(int, sums), strict=True))


@jax.jit
def _sum_all(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(x: jax.Array) -> jax.Array:
    """Sum of an array's words, each times an odd number of its own, modulo 2^32.

    An odd factor has an inverse, so no change of a single word goes unnoticed, and
    integers are added exactly in any order.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, f"uint{min(32, 8 * x.dtype.itemsize)}")
    words = words.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
