"""A run's folder as it is looked at: program, checkpoints, probe batch."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import config as configs
from experiments.data.order import Process
from experiments.errors import UserError, one_line
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.identity import MAY_CHANGE, flatten_json
from experiments.trainer.program import Program, make_program
from experiments.trainer.state import TrainState


def load_config(
    folder: pathlib.Path, overrides: list[str]
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """The config of a run, as its folder has it, and all of its config.json.

    Args:
      folder: of the run.
      overrides: `--config.*` words, of fields that leave the training as it is.

    Raises:
      UserError: there is no run, or it was made with what is not registered here.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no run: it has no config.json") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    own = content.get("config") if isinstance(content, dict) else None
    if not isinstance(own, dict):
        raise UserError(f"{path} cannot be used: it has no config of a run")
    fields = flatten_json(own)
    for word in overrides:
        field = word.partition("config.")[2].partition("=")[0]
        if not field.startswith(tuple(x for x in MAY_CHANGE if x.startswith("mesh"))):
            raise UserError(
                f"--config.{field}: the run's own is taken, allowed mesh.* alone"
            )
    words = [f"--config.{name}={_word(value)}" for name, value in fields.items()]
    try:
        config, _ = configs.load(None, [*words, *overrides])
    except UserError as error:
        raise UserError(
            f"{path}: {error}; a run with own parts needs --config, the file that "
            "registers them"
        ) from error
    return config, content


def _word(value: Any) -> str:
    """A value of a config as the command line has it."""
    if isinstance(value, list):
        return repr(tuple(value))
    return str(value)


class LookedAt:
    """A run's folder with what a measurement needs of it.

    Attributes:
      folder: of the run.
      config: of the run.
      program: task, optimizer and layout.
      steps: of its checkpoints, ascending.
    """

    def __init__(self, folder: pathlib.Path, overrides: list[str]):
        """Reads the config and builds the program; compiles nothing.

        Raises:
          UserError: the folder holds no run that can be looked at.
        """
        self.folder = folder
        self.config, content = load_config(folder, overrides)
        self.program: Program = make_program(self.config, trace=False)
        if content.get("data_digest") != self.program.task.digest:
            raise UserError(f"{folder}: the data are not what the run was trained on")
        self._checkpoints = Checkpoints(folder / "checkpoints", print, read_only=True)
        self.steps = sorted(self._checkpoints.steps())
        if not self.steps:
            raise UserError(f"{folder} holds no checkpoint to look at")

    def close(self) -> None:
        """Ends the reader of the checkpoints."""
        self._checkpoints.close()

    def restore(self, step: int) -> tuple[TrainState, Any]:
        """State and place in the data at a checkpoint.

        Raises:
          UserError: it cannot be read.
        """
        try:
            return self._checkpoints.read(step, self.program.abstract)
        except OSError as error:
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} cannot be read: "
                f"{error.strerror}"
            ) from error

    def probe(self, examples: int) -> Any:
        """The first training examples of the run's order, over the mesh.

        Args:
          examples: how many.
        """
        batches = self.program.task.train_iterator(self.config.seed, Process(0, 1))
        parts, rows = [], 0
        while rows < examples:
            parts.append(next(batches))
            rows += len(jax.tree.leaves(parts[-1])[0])
        whole = jax.tree.map(lambda *x: np.concatenate(x)[:examples], *parts)
        return self.program.layout.put_whole(whole)

    def next_step(self, state: TrainState, position: Any) -> Any:
        """The parameters after the step that the run makes, or would make, next.

        After the last step that is one more with the rate of the last.
        """
        program, layout = self.program, self.program.layout
        batches = program.task.train_iterator(self.config.seed, layout.process)
        batches.set_state(position)
        drawn = tuple(next(batches) for _ in range(program.batches_per_step))
        last = jnp.minimum(state.step, self.config.train.steps - 1)
        step = self._compiled_step
        return step(state._replace(step=last), layout.put(drawn), program.peaks)[
            0
        ].params

    @property
    def _compiled_step(self) -> Any:
        if not hasattr(self, "_step"):
            self._step = self.program.layout.compile(self.program.step)
        return self._step

    def example_loss(self, params: Any, example: Any) -> jax.Array:
        """The training loss of one example, which has no leading axis."""
        batch = jax.tree.map(lambda x: x[None], example)
        return self.program.task.loss(params, batch, self._key())[0]

    def loss(self, params: Any, batch: Any) -> jax.Array:
        """The training loss of a batch, a microbatch of the run at a time."""
        rows = len(jax.tree.leaves(batch)[0])
        train = self.config.train
        most = max(train.batch_size // train.accumulate, 1)
        size = next(n for n in range(min(most, rows), 0, -1) if rows % n == 0)

        @jax.checkpoint
        def part(total, own):
            return total + self.program.task.loss(params, own, self._key())[0], None

        chunks = jax.tree.map(
            lambda x: x.reshape(size, -1, *x.shape[1:]).swapaxes(0, 1), batch
        )
        total, _ = jax.lax.scan(part, jnp.zeros(()), chunks)
        return total * (size / rows)

    def _key(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    def pixels(self, batch: Any, row: int) -> dict[str, Any]:
        """`{"pixels": nested lists}` of an image in bytes; nothing of other examples.

        Of large images it is every second pixel or fewer, at most 64 a side.
        """
        images = batch.get("image") if isinstance(batch, dict) else None
        if images is None or images.ndim != 4 or images.dtype != np.uint8:
            return {}
        every = -(-max(images.shape[1:3]) // 64)
        return {"pixels": np.asarray(images[row])[::every, ::every].tolist()}

    def shown(self, batch: Any, row: int) -> Any:
        """An example for the reader: text, token numbers, or the label of an image."""
        example = jax.tree.map(lambda x: np.asarray(x[row]), batch)
        if isinstance(example, dict):
            found = {name: x.item() for name, x in example.items() if x.ndim == 0}
            return ", ".join(f"{name} {x}" for name, x in found.items())
        # A vocabulary of bytes, or no token of a larger one would be that large.
        if max(np.max(x) for x in map(np.asarray, jax.tree.leaves(batch))) < 256:
            return bytes(example.astype(np.uint8).ravel()).decode(errors="replace")
        return " ".join(map(str, example.ravel()))


@contextlib.contextmanager
def opened(folder: pathlib.Path, overrides: list[str]) -> Iterator[LookedAt]:
    """A run that is looked at, closed at the end."""
    run = LookedAt(folder, overrides)
    try:
        yield run
    finally:
        run.close()
