"""Small moments stay near the full ones, and split weights add small steps up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.matrices import lowbit
from optlab.registry import adamw, sgd


def test_rounding_at_random_has_the_number_for_its_mean():
    x = jnp.full(20000, 1.001)
    rounded = lowbit.round_stochastically(x, jax.random.key(0))
    assert {float(v) for v in np.unique(rounded.astype(jnp.float32))} == {1, 1.0078125}
    assert abs(float(rounded.astype(jnp.float32).mean()) - 1.001) < 1e-4
    odd = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, 3e38, -2.5])
    same = lowbit.round_stochastically(odd, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(same[:4], odd[:4])
    np.testing.assert_allclose(same[4:], odd[4:], rtol=1e-2)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("inner", [adamw, optax.adamw, optlab.lion, optlab.muon])
def test_steps_stay_near_those_of_full_moments(inner, dtype):
    """Over gradients of very different sizes, of which some fall silent."""
    tx = inner(1e-2)
    small = optlab.small_state(tx, dtype)
    params = {"w": jnp.ones((6, 40)), "bias": jnp.ones(5)}
    rng = np.random.default_rng(0)
    size = np.logspace(-6, 0, 6)[:, None]

    @jax.jit
    def both(grads, states):
        pairs = [
            t.update(grads, s, params) for t, s in zip((tx, small), states, strict=True)
        ]
        return [u for u, _ in pairs], [s for _, s in pairs]

    states = [tx.init(params), small.init(params)]
    for step in range(12):
        w = size * rng.standard_normal((6, 40)) * (np.arange(40) % 3 > 0)
        w = w * (step < 3 or np.arange(40)[None] > 5)
        grads = {"w": jnp.asarray(w, jnp.float32), "bias": jnp.ones(5)}
        (full, coded), states = both(grads, states)
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(coded), strict=True):
        if inner is optlab.lion:  # Signs differ where the momentum is near 0.
            assert np.mean(a != b) < 0.05
        else:
            largest = np.abs(a).max()
            assert np.abs(b).max() < 1.2 * largest
            assert np.sqrt(np.mean((a - b) ** 2)) < 0.05 * np.sqrt(np.mean(a**2))


def test_a_second_moment_does_not_become_zero_beside_a_large_one():
    """Its entry has no gradient any more, and a momentum to step by."""
    tx = optlab.small_state(adamw(1.0, b1=0.9, b2=0.999))
    params = {"w": jnp.zeros((1, 32))}
    state = tx.init(params)
    first = jnp.full((1, 32), 1e-4).at[0, 0].set(1.0)
    update = jax.jit(tx.update)
    for grads in (first, first, jnp.zeros((1, 32))):
        updates, state = update({"w": grads}, state, params)
    assert np.abs(updates["w"]).max() < 2


def test_moments_are_found_by_name_and_asked_for():
    with pytest.raises(ValueError, match="first_moments"):
        optlab.small_state(optax.sgd(1.0)).init(jnp.ones(3))
    tx = optlab.small_state(optax.adam(1.0))
    state = tx.init(jnp.ones(40))
    kinds = [x.dtype for x in jax.tree.leaves(state) if x.size == 40]
    assert kinds == [jnp.int8, jnp.uint8]
    with pytest.raises(ValueError, match="dtype"):
        optlab.small_state(optax.adam(1.0), "int4")


@pytest.mark.parametrize(("bits", "bound"), [(8, 7e-4), (16, 2e-6)])
def test_small_steps_add_up_in_what_bfloat16_leaves(bits, bound):
    start = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (5, 7)), jnp.float32)
    tx = optlab.split_weights(sgd(1.0, momentum=0.0), bits=bits)
    state = tx.init({"w": start})
    params = {"w": start.astype(jnp.bfloat16)}
    update = jax.jit(tx.update)
    grads = {"w": jnp.full((5, 7), 1e-4, jnp.bfloat16)}
    step = float(grads["w"][0, 0])
    for _ in range(40):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert params["w"].dtype == jnp.bfloat16
    # Of 3e-5 a code has, half may be lost in each step; the sum of them is 4e-3.
    joined = lowbit.join(params["w"], state.rest["w"])
    np.testing.assert_allclose(joined, start - 40 * step, rtol=0, atol=bound)
    # Alone, bfloat16 would stand still.
    alone = start.astype(jnp.bfloat16)
    assert jnp.all(alone + jnp.bfloat16(-1e-4) == alone)
    with pytest.raises(ValueError, match="'w' is float32"):
        tx.update(grads, state, {"w": start})
