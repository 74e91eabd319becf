"""Scion against the authors' recorded trajectory and its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from tests.golden import follow, load


def optimizer(meta):
    arguments = ("learning_rate", "b1", "constrained", "hidden_radius")
    return optlab.scion(**{name: meta[name] for name in arguments})


def test_follows_the_authors_code_in_float64(x64):
    data = load("scion_a")
    assert follow(optimizer(data.meta), data) < 1e-9


def test_follows_the_authors_code_in_float32():
    data = load("scion_a")
    assert follow(optimizer(data.meta), data) < 5e-4


def test_every_group_steps_by_its_radius(x64):
    rng = np.random.default_rng(0)
    shapes = {
        "embed": {"embedding": (11, 4)},
        "head": {"kernel": (4, 11)},
        "norm": {"scale": (4,)},
        "conv": {"kernel": (3, 3, 2, 5)},
        "zero": {"bias": (3,)},
    }
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    grads = jax.tree.map(lambda p: p**3, params)
    grads["zero"]["bias"] = jnp.zeros(3)
    radii = dict(hidden_radius=2.0, embedding_radius=12.0, vector_radius=0.5)
    for constrained in (True, False):
        tx = optlab.scion(0.1, constrained=constrained, **radii)
        updates, _ = tx.update(grads, tx.init(params), params)
        new = optax.apply_updates(params, updates)
        kept = 0.9 if constrained else 1.0

        def check(key, name, direction, kept=kept, new=new):
            expected = kept * params[key][name] - 0.1 * direction
            np.testing.assert_allclose(new[key][name], expected, rtol=0, atol=1e-12)

        check("embed", "embedding", 12 / 4 * jnp.sign(grads["embed"]["embedding"]))
        check("head", "kernel", 12 / 4 * jnp.sign(grads["head"]["kernel"]))
        g = grads["norm"]["scale"]
        check("norm", "scale", 0.5 * 2 * g / jnp.linalg.norm(g))
        check("zero", "bias", jnp.zeros(3))
        g = grads["conv"]["kernel"]
        polar = optlab.orthogonalize(0.1 * g.reshape(18, 5)).reshape(g.shape)
        check("conv", "kernel", 2 * np.sqrt(5 / 2) / 9 * polar)


def test_the_constraint_holds_whatever_the_gradients():
    rng = np.random.default_rng(1)
    params = {"embed": jnp.zeros((7, 4)), "bias": jnp.zeros(6)}
    tx = optlab.scion(0.2, embedding_radius=8.0, vector_radius=3.0)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(40):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.standard_normal(p.shape) + 2.0, p.dtype), params
        )
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.abs(params["embed"]).max() <= 8 / 4 * (1 + 1e-5)
    assert jnp.sqrt(jnp.mean(params["bias"] ** 2)) <= 3 * (1 + 1e-5)
    assert jnp.abs(params["embed"]).max() > 1.9


@pytest.mark.parametrize(
    "kwargs",
    [{"hidden_radius": -1.0}, {"embedding_radius": -1.0}, {"vector_radius": -1.0}],
)
def test_an_argument_out_of_range_is_named(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        optlab.scion(1e-2, **kwargs)
