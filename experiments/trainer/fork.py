"""A run that starts from another one's weights: `train.fork_run`."""

import contextlib
import pathlib
from typing import Any

import ml_collections

from experiments.errors import UserError
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.state import TrainState

_FIELD = "--config.train.fork_run"


def check(config: ml_collections.ConfigDict) -> None:
    """Makes sure that there is such a checkpoint; reads none.

    Raises:
      UserError: there is none.
    """
    if config.train.fork_run is not None:
        _step(config.train.fork_run, config.train.fork_step)


def params(config: ml_collections.ConfigDict, abstract: TrainState) -> Any:
    """The weights that the run starts from, where they lie on its mesh.

    Raises:
      UserError: they cannot be read, or are those of another model.
    """
    run, step = config.train.fork_run, config.train.fork_step
    with contextlib.closing(_checkpoints(run)) as checkpoints:
        try:
            state, _ = checkpoints.read(_step(run, step), abstract, only=("params",))
        except OSError as error:
            raise UserError(
                f"{_FIELD}: the weights of {run} do not fit this model or cannot be "
                f"read: {error.strerror}"
            ) from error
    return state.params


def _checkpoints(run: str) -> Checkpoints:
    return Checkpoints(pathlib.Path(run) / "checkpoints", print, read_only=True)


def _step(run: str, wanted: int | None) -> int:
    steps = _checkpoints(run).steps()
    if not steps:
        raise UserError(f"{_FIELD}: {run} holds no checkpoint")
    if wanted is not None and wanted not in steps:
        raise UserError(
            f"--config.train.fork_step: given {wanted}, allowed those of {run}: "
            f"{', '.join(map(str, sorted(steps)))}"
        )
    return steps[0] if wanted is None else wanted
