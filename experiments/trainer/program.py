"""What a config stands for: task, optimizer, layout and step, before any compiling."""

import pathlib
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import optlab
from experiments import choices, tasks, wrappers
from experiments import config as configs
from experiments.errors import UserError, one_line
from experiments.schedules import make_schedule
from experiments.trainer import fork, memory
from experiments.trainer import optimizer as optimizers
from experiments.trainer.faults import Faults
from experiments.trainer.gradient import Gradient
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
      needs: extra arguments of the optimizer's update, with its wrappers.
      batches_per_step: how many batches a step reads.
      tokens_per_step: in all of them.
      step: the training step, a pure function.
      diagnose: the numbers of every layer of a step, another one.
      abstract: the state's shapes, dtypes and shardings.

    Raises:
      Exception: whatever a part says of a config that it cannot use; `make_program`
        says which field that is.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        train, kwargs = config.train, dict(config.optimizer.kwargs)
        self.task = tasks.build(config)
        self.layout = Layout(config)
        make = optimizers.make_optimizer
        self.tx, peaks = make(config, self.task.roles, self.layout.distribute)
        self.peaks = {name: np.float32(value) for name, value in peaks.items()}
        schedule = make_schedule(config)
        needs = optlab.registry.get(config.optimizer.name).needs_for(kwargs)
        needs += wrappers.needs(config.optimizer.wrappers)
        self.needs = needs
        self.batches_per_step = batches_per_step(needs)
        section = config.optimizer
        options = {
            "gradient": Gradient(
                *(section.gradient, section.gradient_samples, section.gradient_mu)
            ),
            "needs": needs,
            "hessian_interval": kwargs.get("hessian_interval", 1),
            "accumulate": train.accumulate,
            "clip_norm": train.clip_norm,
            "faults": Faults(**config.faults),
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
        self.tokens_per_step = self.batches_per_step * self.task.tokens_per_batch

    def _init(self, seed) -> TrainState:
        return init_state(
            *(self.task, self.tx, seed),
            with_ema=self.config.train.ema_decay > 0,
            weights=wrappers.weights_dtype(self.config.optimizer.wrappers),
        )

    def trace(self) -> None:
        """Traces all that a run compiles, and compiles nothing.

        jax keeps the traces, so the compilation does not make them again.
        """
        # Batches to train on have other numbers of rows, and are alike in all else.
        example = self.task.eval_batches()[0]
        batches = (self.layout.shapes(example),) * self.batches_per_step
        self.layout.trace(self.step, self.abstract, batches, self.peaks)
        if self.config.train.diagnostics_every:
            self.layout.trace(self.diagnose, self.abstract, batches, self.peaks)
        jax.eval_shape(self.task.eval_metrics, self.abstract.params, example)

    def first_state(self) -> TrainState:
        """The state before the first step, made where it lies."""
        make = self.layout.init(self._init, self.abstract)
        state = make(np.uint32(self.config.seed))
        if self.config.train.fork_run is None:
            return state
        params = fork.params(self.config, self.abstract)
        ema = optax.tree.cast(params, jnp.float32) if state.ema else ()
        return self.fresh_optimizer(state._replace(params=params, ema=ema))

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


def make_program(config: ml_collections.ConfigDict, *, trace: bool = True) -> Program:
    """Builds the program and makes sure that its step can be made.

    Args:
      config: from `experiments.config.load`.
      trace: whether to train: the state must fit, and the steps are traced.

    Raises:
      UserError: one line that names the field which cannot be used.
    """
    try:
        return _attempt(config, trace)
    except UserError:
        raise
    except Exception as error:  # jax and numpy raise what they like
        raise UserError(_refusal(config, trace, error)) from error


def _attempt(config: ml_collections.ConfigDict, trace: bool) -> Program:
    program = Program(config)
    if trace:
        memory.check(program.abstract)
        fork.check(config)
        program.trace()
    return program


def _refusal(config: ml_collections.ConfigDict, trace: bool, error: Exception) -> str:
    message = one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"--config: {error.filename}: {error.strerror}"
    named = message.partition(" ")[0].rstrip(":")
    if isinstance(error, ValueError) and named in configs.FIELDS:
        return f"--config: {message}"
    for section in choices.FIELDS:
        if isinstance(error, ValueError) and named in config[section].kwargs:
            return f"--config.{section}.kwargs.{message}"
    kind = type(error).__name__
    field = _culprit(config, trace)
    if field is not None:
        value = configs.flatten(config)[field]
        return f"--config.{field}: given {value!r}, {kind}: {message}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [x for x in frames if "site-packages" not in x.filename] or frames
    where = f"{pathlib.Path(own[-1].filename).name}:{own[-1].lineno}"
    return (
        f"--config: optimizer {config.optimizer.name} and model {config.model.name} "
        f"make no step, {kind}: {message} ({where})"
    )


def _culprit(config: ml_collections.ConfigDict, trace: bool) -> str | None:
    """The argument without which the config can be used: the last one that is put back.

    Messages of jax and numpy do not say which argument they are about.
    """
    config = config.copy_and_resolve_references().unlock()
    defaults = configs.default_kwargs(config)
    for field, value in configs.flatten(config).items():
        section, name = configs.place(config, field)
        if ".kwargs." not in field or (field in defaults and value == defaults[field]):
            continue
        if field in defaults:
            section[name] = defaults[field]
        else:  # of a factory that takes any name
            del section[name]
        try:
            _attempt(config, trace)
        except Exception:
            continue
        return field
    return None
