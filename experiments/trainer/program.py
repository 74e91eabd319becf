"""What a config stands for: task, optimizer, layout and step, before any compiling."""

from typing import Any

import jax
import ml_collections
import numpy as np

import optlab
from experiments.config import UserError
from experiments.tasks import TASKS
from experiments.trainer import optimizer as optimizers
from experiments.trainer.layout import Layout
from experiments.trainer.state import TrainState, init_state
from experiments.trainer.step import batches_per_step, make_diagnose, make_train_step


class Program:
    """The parts of a run; building them checks the config, and compiles nothing.

    Attributes:
      config: the run's.
      task: data, model and loss.
      layout: where the arrays lie.
      tx: the optimizer.
      peaks: its injected rates at their highest, by argument.
      batches_per_step: how many batches a step reads.
      tokens_per_step: in all of them.
      step: the training step, a pure function.
      diagnose: the numbers of every layer of a step, another one.
      abstract: the state's shapes, dtypes and shardings.

    Raises:
      UserError: if the config cannot be trained.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        train, kwargs = config.train, dict(config.optimizer.kwargs)
        try:
            self.task = TASKS[config.task.name](config)
            self.layout = Layout(config)
            make = optimizers.make_optimizer
            self.tx, peaks = make(config, self.task.roles, self.layout.distribute)
            self.peaks = {name: np.float32(value) for name, value in peaks.items()}
            schedule = optimizers.make_schedule(config)
            needs = optlab.registry.get(config.optimizer.name).needs_for(kwargs)
            self.batches_per_step = batches_per_step(needs)
            options = {
                "needs": needs,
                "hessian_interval": kwargs.get("hessian_interval", 1),
                "accumulate": train.accumulate,
                "clip_norm": train.clip_norm,
                "spike_every": config.faults.spike_every,
                "spike_scale": config.faults.spike_scale,
                "axis": self.layout.axis,
            }
            self.step = make_train_step(
                *(self.task, self.tx, schedule), ema_decay=train.ema_decay, **options
            )
            undecayed = optimizers.without_decay(config)
            self.diagnose = make_diagnose(
                self.task,
                make(undecayed, self.task.roles, self.layout.distribute)[0],
                schedule,
                arguments=kwargs,
                **options,
            )
            self.abstract = self.layout.lay_out(
                jax.eval_shape(self._init, np.uint32(0)), self.tx
            )
        except (ValueError, TypeError) as error:
            message = str(error).splitlines()[0]
            named = message.partition(" ")[0].rstrip(":")
            inside = ".optimizer.kwargs." if named in kwargs else ": "
            raise UserError(f"--config{inside}{message}") from error
        self.tokens_per_step = self.batches_per_step * self.task.tokens_per_batch

    def _init(self, seed) -> TrainState:
        with_ema = self.config.train.ema_decay > 0
        return init_state(self.task, self.tx, seed, with_ema=with_ema)

    def first_state(self) -> TrainState:
        """The state before the first step, made where it lies."""
        make = self.layout.init(self._init, self.abstract)
        return make(np.uint32(self.config.seed))

    def fresh_optimizer(self, state: TrainState) -> TrainState:
        """The state with the optimizer's part as before the first step."""
        make = self.layout.init(self.tx.init, self.abstract.opt_state)
        return state._replace(opt_state=make(state.params))

    def table(self) -> str:
        """Which parameter gets what from the optimizer."""
        return str(optlab.describe(self.abstract.params, self.task.roles, self.tx))

    def evaluator(self, batches: list[Any]):
        """Means of the task's metrics over fixed batches.

        Args:
          batches: from `task.eval_batches()`.

        Returns:
          `evaluate(params, count=None) -> {"val_loss": ..., ...}`, over the first
          `count` batches or all.
        """
        placed = [self.layout.put_whole(batch) for batch in batches]
        metrics = jax.jit(self.task.eval_metrics)

        def evaluate(params, count: int | None = None) -> dict[str, float]:
            found = jax.device_get([metrics(params, batch) for batch in placed[:count]])
            return {
                f"val_{name}": float(np.mean([values[name] for values in found]))
                for name in found[0]
            }

        return evaluate
