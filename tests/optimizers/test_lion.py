"""Lion is optax's, and follows the authors' recorded trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from tests.golden import follow, load


def authors(meta):
    names = ("b1", "b2", "weight_decay")
    return optlab.lion(meta["learning_rate"], **{name: meta[name] for name in names})


def test_follows_the_authors_code_in_float64(x64):
    data = load("lion_a")
    assert follow(authors(data.meta), data) < 1e-9


def mask(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize("mu_dtype", [None, jnp.bfloat16])
def test_equals_optax_to_the_bit_in_float32(mu_dtype):
    rng = np.random.default_rng(0)
    params = {"b": jnp.ones(5), "w": jnp.asarray(rng.random((3, 5)), jnp.float32)}
    schedule = optax.cosine_decay_schedule(1e-2, 10)
    ours = optlab.lion(
        schedule, b1=0.95, b2=0.98, weight_decay=0.1, weight_decay_mask=mask,
        mu_dtype=mu_dtype,
    )  # fmt: skip
    theirs = optax.lion(
        schedule, b1=0.95, b2=0.98, weight_decay=0.1, mask=mask, mu_dtype=mu_dtype
    )
    runs = []
    for tx in (ours, theirs):
        update, p, state = jax.jit(tx.update), params, tx.init(params)
        for step in range(6):
            grads = jax.tree.map(lambda x, s=step: jnp.sin((s + 3) * x + s), p)
            updates, state = update(grads, state, p)
            p = optax.apply_updates(p, updates)
        runs.append((p, optax.tree.get(state, "mu")))
    for one, other in zip(*map(jax.tree.leaves, runs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_bfloat16_parameters_have_a_float32_momentum():
    """Where optax's own has bfloat16, in which (1 - b2) g is lost beside m."""
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    tx = optlab.lion(1e-2)
    updates, state = tx.update(params, tx.init(params), params)
    assert optax.tree.get(state, "mu")["w"].dtype == jnp.float32
    assert updates["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "value"), [("b1", 1.0), ("b2", -0.1), ("weight_decay", -1.0)]
)
def test_an_argument_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        optlab.lion(1e-3, **{name: value})
