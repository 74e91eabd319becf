"""Stable-SPAM against the authors' recorded trajectory and a NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from tests.golden import follow, load

ARGUMENTS = (
    *("b1", "b2", "eps", "gamma1", "gamma2", "gamma3"),
    *("reset_interval", "total_steps", "weight_decay"),
)


def authors(meta):
    arguments = {name: meta[name] for name in ARGUMENTS}
    return optlab.stable_spam(meta["learning_rate"], **arguments)


def test_follows_the_authors_code_in_float64(x64):
    data = load("stable_spam_a")
    assert follow(authors(data.meta), data) < 1e-9


def reference(gradients, interval, total):
    """One tensor, line by line as the module's docstring has it."""
    b1, b2, eps = 0.9, 0.99, 1e-8
    g1, g2, g3 = 0.7, 0.9, 0.95
    m = v = np.zeros_like(gradients[0])
    q = mu = nu = c = 0
    for t, g in enumerate(gradients, start=1):
        factor = 1 if total is None else 0.5 + (1 + np.cos(np.pi * t / (total + 1))) / 4
        q = g3 * q + (1 - g3) * np.abs(g).max()
        limit = q / (1 - g3**t)
        clipped = np.where(np.abs(g) > limit, g * limit / np.abs(g).max(), g)
        n = np.sqrt((clipped**2).sum())
        mu = g1 * factor * mu + (1 - g1 * factor) * n
        nu = g2 * nu + (1 - g2) * n**2
        target = mu / (1 - (g1 * factor) ** t) / (np.sqrt(nu / (1 - g2**t)) + eps)
        normed = clipped / n * target
        if t % interval == 0:
            m = v = np.zeros_like(g)
            c = 0
        c += 1
        b = b1 * factor
        m, v = b * m + (1 - b) * normed, b2 * v + (1 - b2) * normed**2
        yield m / (1 - b**c) / (np.sqrt(v / (1 - b2**c)) + eps)


SHAPES = {
    "conv": {"kernel": (3, 2, 2, 4)},
    "embed": {"embedding": (7, 3)},
    "layers": {"kernel": (2, 3, 4), "bias": (2, 5)},
    "norm": {"scale": (6,)},
    "temperature": (),
}
ROLES = optlab.default_roles(stacked=("^layers/",))


def gradients(steps):
    rng = np.random.default_rng(0)

    def leaf(shape):
        spikes = np.where(rng.random((steps, *shape)) < 0.1, 100, 1)
        return rng.standard_normal((steps, *shape)) * spikes

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize("total", [None, 20])
def test_follows_its_equations_through_resets_and_layer_by_layer(total, x64):
    steps = 11
    tx = optlab.scale_by_stable_spam(
        b2=0.99, gamma3=0.95, reset_interval=4, total_steps=total, roles=ROLES
    )
    grads = gradients(steps)
    state, update = tx.init(jax.tree.map(lambda g: g[0], grads)), jax.jit(tx.update)
    history = []
    for step in range(steps):
        updates, state = update(jax.tree.map(lambda g, s=step: g[s], grads), state)
        history.append(updates)
    assert update._cache_size() == 1
    found = jax.tree.map(lambda *x: np.stack(x), *history)
    # Each layer is a separate tensor, in kernel and bias.
    for tree in (grads, found):
        tree["layers"] = {
            f"{key}{i}": x[:, i] for key, x in tree["layers"].items() for i in range(2)
        }
    for g, u in zip(jax.tree.leaves(grads), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(u, list(reference(g, 4, total)), rtol=1e-9)
    assert state.norm_mean["layers"]["kernel"].shape == (2,)
    assert state.max_mean["conv"]["kernel"].shape == ()


def test_degenerate_gradients_stay_finite_and_are_forgotten():
    params = {"b": jnp.ones(4), "w": jnp.arange(6.0).reshape(2, 3)}
    tx = optlab.scale_by_stable_spam(reset_interval=4)
    update = jax.jit(tx.update)
    for scale in (0.0, 1e-20, 1e20):
        state = tx.init(params)
        for factor in (scale, scale, *[1.0] * 400):
            gradient = jax.tree.map(lambda x, f=factor: f * x, params)
            updates, state = update(gradient, state)
            assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
        assert all(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma1", 1.0),
        ("gamma2", -0.1),
        ("gamma3", 2.0),
        ("total_steps", 0),
        ("reset_interval", 1.5),
        ("b2", 1.0),
    ],
)
def test_an_argument_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        optlab.stable_spam(1e-3, **{name: value})
