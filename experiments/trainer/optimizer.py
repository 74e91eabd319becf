"""From the names and numbers of a config to an optax transformation and its rates."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

import optlab
from experiments import wrappers
from optlab import checks
from optlab.compose import decay_mask
from optlab.matrices.buckets import Distribute
from optlab.signatures import accepted


def make_optimizer(
    config: ml_collections.ConfigDict,
    roles: Callable[[tuple, Any], Any],
    distribute: Distribute | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, dict[str, float]]:
    """Builds the registry's optimizer, in its wrappers, with its rates injected.

    The transformation itself knows no rate: the training step writes `peak * schedule`
    into its state, so that runs which differ in their rates share a compiled program.

    Args:
      config: the whole config; `optimizer` is read.
      roles: the task's rule for which leaf is what.
      distribute: how matrix work is spread, for the methods that have some.

    Returns:
      The transformation, whose state is that of `optax.inject_hyperparams`, and the
      peak of every injected rate by argument name.

    Raises:
      ValueError: an argument is out of range; the message begins with its name.
      UserError: a wrapper cannot be had.
    """
    section = config.optimizer
    entry = optlab.registry.get(section.name)
    supplied = {
        "adam_learning_rate": section.adam_learning_rate,
        "weight_decay": section.weight_decay,
        "weight_decay_mask": decay_mask("matrices", roles),
        "roles": roles,
        "distribute": distribute,
    }
    taken = {name: x for name, x in supplied.items() if _is_taken(section, name)}
    arguments = accepted(entry.factory, section.kwargs) | taken
    arguments["learning_rate"] = section.learning_rate
    peaks = {
        name: value
        for name, value in arguments.items()
        if name.endswith("learning_rate") and value is not None
    }
    # The optimizer itself only ever sees rates that are injected.
    checks.rate(**peaks)
    fixed = {name: x for name, x in arguments.items() if name not in peaks}
    around = wrappers.parse(section.wrappers)

    def made(**rates: jax.Array) -> optax.GradientTransformation:
        return wrappers.wrapped(section.name, fixed | rates, around)

    made.__signature__ = inspect.Signature(  # what is to be injected
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in peaks]
    )
    injected = optax.inject_hyperparams(made, hyperparam_dtype=jnp.float32)
    return injected(**dict.fromkeys(peaks, 1.0)), peaks


def _is_taken(section: ml_collections.ConfigDict, name: str) -> bool:
    """Whether the optimizer, or what a wrapper makes of it, has one of these."""
    if optlab.registry.get(section.name).takes(name):
        return True
    return name == "adam_learning_rate" and wrappers.parts_matrices(section.wrappers)


def without_decay(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with every weight decay of the optimizer at 0."""
    config = config.copy_and_resolve_references()
    config.optimizer.weight_decay = 0.0
    if "adam_weight_decay" in config.optimizer.kwargs:
        config.optimizer.kwargs.adam_weight_decay = 0.0
    return config


def unused_fields(config: ml_collections.ConfigDict) -> list[str]:
    """The rates and decays that are set and the chosen optimizer does not have."""
    section = config.optimizer
    return [
        f"optimizer.{name}"
        for name in ("adam_learning_rate", "weight_decay")
        if section[name] and not _is_taken(section, name)
    ]


def set_rates(opt_state, peaks: Mapping[str, jax.Array], share: jax.Array):
    """The optimizer state with every injected rate at `share` of its peak."""
    rates = {name: jnp.asarray(peak * share) for name, peak in peaks.items()}
    return opt_state._replace(hyperparams=opt_state.hyperparams | rates)
