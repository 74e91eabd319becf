"""Sharded steps of every registry entry over one small tree, for several tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from optlab import sharding
from optlab.registry import get, names
from tests.helpers.conformance import SMALLER, extras

# Stacks that eight devices divide, and a stack and columns that they do not.
SHAPES = {
    "embed": (16, 8),
    "layers": {"bias": (8, 16), "up": {"kernel": (8, 8, 16)}},
    "odd": {"kernel": (3, 8, 5)},
}
# For what is expensive: no uneven stack, one bucket.
FEW = {k: v for k, v in SHAPES.items() if k != "odd"}
ROLES = optlab.default_roles(stacked=("^layers/", "^odd/"))
# There SOAP divides rounding by rounding in null spaces, but for its eps.
IN_FLOAT32 = {"soap": {"eps": 1e-3}, "soap_h": {"eps": 1e-3}}
SEEDS = (1, 2, 3)  # of the gradients of each step

_SPREAD = [n for n in names() if get(n).takes("distribute")]
# Those with matrix work to spread; of the hyperball steps one, with a short direction.
APART = [n for n in _SPREAD if not n.endswith("_h") or n == "adam_h"]
# The others are short, and share their programs.
OTHERS = [n for n in names() if n not in _SPREAD]

# Name -> mesh, axes of the matrix work, rules.
LAYOUTS = {
    "fsdp": ({"data": 8}, ("data",), sharding.fsdp_rules),
    "tensor_parallel": ({"model": 8}, ("model",), sharding.tensor_parallel_rules),
    "both": (
        {"data": 4, "model": 2},
        ("data", "model"),
        lambda mesh: sharding.tensor_parallel_rules(mesh, "model", "data"),
    ),
}


def arrays(shapes, dtype=jnp.float32, seed=0):
    """Random arrays of those shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make(name, learning_rate=1e-2, roles=ROLES, **kwargs):
    """The entry, with those arguments that it has."""
    offered = {**SMALLER.get(name, {}), "roles": roles, **kwargs}
    return get(name).build(learning_rate, **offered)


def stepper(name, tx):
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, **extras(name, grads))
        return optax.apply_updates(params, updates), state

    return step


def together(txs):
    """One step of trees by name, `txs` each on its own: compiled faster than apart."""
    steps = {name: stepper(name, tx) for name, tx in txs.items()}

    def step(grads, state, params):
        done = {n: f(grads, state[n], params[n]) for n, f in steps.items()}
        return tuple({n: pair[i] for n, pair in done.items()} for i in (0, 1))

    return step


def follow(step, params, state, gradients):
    for grads in gradients:
        params, state = step(grads, state, params)
    return params, state


def place(mesh, rules, tree):
    return jax.device_put(
        tree, sharding.to_shardings(mesh, sharding.param_specs(tree, rules))
    )


def laid_out(layout):
    axes, over, rules = LAYOUTS[layout]
    mesh = sharding.make_mesh(axes)
    return mesh, sharding.over_mesh(mesh, over), rules(mesh)


def pinned(name, tx, params, distribute, memory_kind=None):
    """The compiled step with its layouts pinned on both sides, and the first state."""
    state = sharding.init_state(
        tx, params, distribute=distribute, memory_kind=memory_kind
    )
    return _pinned(stepper(name, tx), params, state), state


def pinned_together(txs, params, distribute):
    """The same for several by name."""
    state = {
        name: sharding.init_state(tx, params, distribute=distribute)
        for name, tx in txs.items()
    }
    return _pinned(together(txs), dict.fromkeys(txs, params), state), state


def _pinned(step, params, state):
    layouts = jax.tree.map(lambda x: x.sharding, (params, state))
    return jax.jit(step, donate_argnums=(1, 2), out_shardings=layouts)


def fresh(tree):
    """Copies, for a step that takes its arguments' memory."""
    return jax.tree.map(jnp.copy, tree)


def close(tolerance):
    def compare(tree, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
            *(tree, expected),
        )

    return compare


def shapes_of(tree):
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )
