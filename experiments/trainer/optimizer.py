"""From the names and numbers of a config to an optax transformation and its rates."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import optlab
from optlab.compose import decay_mask
from optlab.matrices.buckets import Distribute
from optlab.schedules import share_of

# Arguments of a factory that the runner gives, so that `optimizer.kwargs` has none.
SUPPLIED = (
    "learning_rate",
    "adam_learning_rate",
    "weight_decay",
    "weight_decay_mask",
    "roles",
    "distribute",
)


def _constant(steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(1.0)


def _linear(steps: int, *, end_value: float = 0.0) -> optax.Schedule:
    return optax.linear_schedule(1.0, end_value, steps)


def _cosine(steps: int, *, end_value: float = 0.0) -> optax.Schedule:
    return optax.cosine_decay_schedule(1.0, steps, alpha=end_value)


def _uba(steps: int, *, phi: float = 1.0, end_value: float = 0.0) -> optax.Schedule:
    return optlab.uba_schedule(1.0, steps, phi, end_value=end_value)


# Name in `schedule.name` -> (steps after warm-up, own arguments) -> share of the peak.
SCHEDULES = {"constant": _constant, "linear": _linear, "cosine": _cosine, "uba": _uba}


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """The share of the peak rate at each step, 1 at the peak.

    Warm-up rises linearly over `warmup` steps, as `(step + 1) / (warmup + 1)`, so that
    the first step is no idle one.

    Args:
      config: the whole config; `schedule` and `train.steps` are read.

    Returns:
      A function from the step (the first is 0) to a scalar.
    """
    steps = config.train.steps
    warmup = share_of(config.schedule.warmup_fraction, steps)
    decay = SCHEDULES[config.schedule.name](steps - warmup, **config.schedule.kwargs)

    def schedule(step):
        rising = (step + 1) / (warmup + 1)
        return jnp.where(step < warmup, rising, decay(jnp.maximum(step - warmup, 0)))

    return schedule


def make_optimizer(
    config: ml_collections.ConfigDict,
    roles: Callable[[tuple, Any], Any],
    distribute: Distribute | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, dict[str, float]]:
    """Builds the registry's optimizer with its rates injected.

    The transformation itself knows no rate: the training step writes `peak * schedule`
    into its state, so that runs which differ in their rates share a compiled program.

    Args:
      config: the whole config; `optimizer` is read.
      roles: the task's rule for which leaf is what.
      distribute: how matrix work is spread, for the methods that have some.

    Returns:
      The transformation, whose state is that of `optax.inject_hyperparams`, and the
      peak of every injected rate by argument name.
    """
    section = config.optimizer
    factory = optlab.registry.get(section.name).factory
    accepted = inspect.signature(factory).parameters
    offered = dict(section.kwargs) | {
        "learning_rate": section.learning_rate,
        "adam_learning_rate": section.adam_learning_rate,
        "weight_decay": section.weight_decay,
        "weight_decay_mask": decay_mask("matrices", roles),
        "roles": roles,
        "distribute": distribute,
    }
    arguments = {name: value for name, value in offered.items() if name in accepted}
    peaks = {
        name: value
        for name, value in arguments.items()
        if name.endswith("learning_rate") and value is not None
    }
    fixed = [name for name in accepted if not name.endswith("learning_rate")]
    injected = optax.inject_hyperparams(
        factory, static_args=fixed, hyperparam_dtype=jnp.float32
    )
    return injected(**(arguments | dict.fromkeys(peaks, 1.0))), peaks


def without_decay(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with every weight decay of the optimizer at 0."""
    config = config.copy_and_resolve_references()
    config.optimizer.weight_decay = 0.0
    if "adam_weight_decay" in config.optimizer.kwargs:
        config.optimizer.kwargs.adam_weight_decay = 0.0
    return config


def unused_fields(config: ml_collections.ConfigDict) -> list[str]:
    """The rates and decays that are set and the chosen optimizer does not have."""
    factory = optlab.registry.get(config.optimizer.name).factory
    accepted = inspect.signature(factory).parameters
    return [
        f"optimizer.{name}"
        for name in ("adam_learning_rate", "weight_decay")
        if config.optimizer[name] and name not in accepted
    ]


def set_rates(opt_state, peaks: Mapping[str, jax.Array], share: jax.Array):
    """The optimizer state with every injected rate at `share` of its peak."""
    rates = {name: jnp.asarray(peak * share) for name, peak in peaks.items()}
    return opt_state._replace(hyperparams=opt_state.hyperparams | rates)
