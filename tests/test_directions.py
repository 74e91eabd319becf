"""Directions are those of the aliases, without rate, sign and decay."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab import directions, registry

PARAMS = {"w": jnp.linspace(-1, 1, 24).reshape(4, 6), "bias": jnp.full(6, 2.0)}
GRADS = jax.tree.map(jnp.cos, PARAMS)
METHODS = [
    "adahessian",
    "adamw",
    "cosmos",
    "lanton",
    "lion",
    "muon",
    "normuon",
    "root",
    "scion",
    "sgd",
    "soap",
    "spam",
    "stable_spam",
]


def test_every_entry_has_a_direction():
    assert set(registry.names()) >= set(METHODS)
    public = {name for name in vars(directions) if not name.startswith("_")}
    assert set(METHODS) <= public


@pytest.mark.parametrize("name", METHODS)
def test_a_direction_is_the_alias_turned_round(name):
    factory = registry.get(name).factory
    direction = getattr(directions, name)
    plain = {"constrained": False} if name == "scion" else {}
    extra = {"hessian_diag": GRADS} if name == "adahessian" else {}

    def two(tx):
        def updates(grads, params):
            state = tx.init(params)
            for _ in range(2):
                new, state = tx.update(grads, state, params, **extra)
            return new

        return updates

    @jax.jit
    def both(grads, params):
        alias = two(factory(1.0, **plain))
        return two(direction())(grads, params), alias(grads, params)

    found, update = both(GRADS, PARAMS)
    # Two programs, which may round apart.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-6), found, update
    )
    dot = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), found, GRADS)))
    assert dot > 0


@pytest.mark.parametrize("name", METHODS)
def test_what_the_loop_does_is_no_argument(name):
    direction = getattr(directions, name)
    names = set(inspect.signature(direction).parameters)
    alias = set(inspect.signature(registry.get(name).factory).parameters)
    left = {"learning_rate", "weight_decay", "weight_decay_mask", "adam_weight_decay"}
    assert alias - names == alias & (left | {"cautious_decay", "constrained"})
    with pytest.raises(TypeError, match=rf"directions\.{name}\(\) .*'weight_decay'"):
        direction(weight_decay=0.1)
    assert f"optlab.{name}" in direction.__doc__
    assert "  learning_rate:" not in direction.__doc__
    assert all(
        f" {x}:" in direction.__doc__ or f"{x}, " in direction.__doc__ for x in names
    )
    with pytest.raises(TypeError, match=rf"directions\.{name}\(\) .*keyword"):
        direction(1e-3)
    assert pickle.loads(pickle.dumps(direction)) is direction
    assert pickle.loads(pickle.dumps(registry.get(name).factory)) is not direction


def test_an_argument_arrives():
    state = directions.cosmos(rank=3).init(PARAMS)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (4, 3) in shapes
    assert optlab.directions is directions
