"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from optlab.roles import leaf_name


class TrainState(NamedTuple):
    """All that a checkpoint must hold, but for the position in the data.

    Attributes:
      step: int32, training steps done, skipped ones among them.
      params: nested dictionary of arrays.
      opt_state: of `optax.inject_hyperparams`.
      key: typed PRNG key; each step folds its number in.
      bad_steps: int32, skipped steps in a row up to now.
      ema: moving average of the parameters, in float32 at least; () without one.
    """

    step: jax.Array
    params: optax.Params
    opt_state: optax.OptState
    key: jax.Array
    bad_steps: jax.Array
    ema: optax.Params = ()


def init_state(
    task,
    tx: optax.GradientTransformation,
    seed: jax.Array,
    *,
    with_ema: bool = False,
    weights: DTypeLike | None = None,
) -> TrainState:
    """The state before the first step; pure, to be compiled with its shardings.

    The optimizer and the average get the task's own weights, and the training those in
    the dtype `weights`, where that is given.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params if weights is None else optax.tree.cast(params, weights),
        opt_state=tx.init(params),
        key=step_key,
        bad_steps=jnp.zeros((), jnp.int32),
        ema=optax.tree.cast(params, jnp.float32) if with_ema else (),
    )


def leaf_names(tree) -> list[str]:
    """The path of every leaf, in the order of the leaves."""
    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def tree_bytes(tree) -> int:
    """Bytes of all arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def by_layer(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The layers' numbers as scalars: those of a stacked leaf by their place in it."""
    return {
        name: {
            "/".join((path, *map(str, place))): array[place]
            for path, array in jax.device_get(found).items()
            for place in np.ndindex(array.shape)
        }
        for name, found in values.items()
    }
