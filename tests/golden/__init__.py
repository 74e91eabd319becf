"""The authors' recorded trajectories, and a walk along them."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Trajectory(NamedTuple):
    """Gradients and the parameters after each step, steps first."""

    meta: dict[str, Any]
    init: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


def load(name: str) -> Trajectory:
    """Reads one file; arrays outside the three groups are in `arrays`."""
    path = pathlib.Path(__file__).parent / f"{name}.npz"
    with np.load(path, allow_pickle=False) as data:
        arrays = dict(data)
    meta = json.loads(str(arrays.pop("__meta__")))
    groups = {
        group: {
            key.removeprefix(f"{group}/"): value
            for key, value in arrays.items()
            if key.startswith(f"{group}/")
        }
        for group in ("init", "grads", "params")
    }
    return Trajectory(meta, **groups, arrays=arrays)


def follow(tx: optax.GradientTransformation, data: Trajectory) -> float:
    """The largest deviation of the parameters along the recorded gradients.

    Runs in the precision that jax has now.
    """
    update = jax.jit(tx.update)
    params = jax.tree.map(jnp.asarray, data.init)
    state = tx.init(params)
    worst = 0.0
    for step in range(len(next(iter(data.grads.values())))):
        grads = {k: jnp.asarray(g[step]) for k, g in data.grads.items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for key, value in params.items():
            assert value.dtype == jnp.asarray(data.init[key]).dtype
            worst = max(worst, float(np.abs(value - data.params[key][step]).max()))
    return worst
