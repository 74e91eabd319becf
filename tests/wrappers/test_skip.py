"""Which steps are skipped or scaled, and what stays of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.registry import adamw, sgd

PARAMS = {"w": jnp.ones((4, 3)), "bias": jnp.ones(3)}
WINDOW = 8


def grads(size):
    return jax.tree.map(lambda p: jnp.full_like(p, size), PARAMS)


def run(tx, sizes, values=None):
    """The updates' sizes, and the state after each step."""
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    found = []
    for i, size in enumerate(sizes):
        extra = {} if values is None else {"value": jnp.float32(values[i])}
        updates, state = update(grads(size), state, PARAMS, **extra)
        found.append((float(optax.tree.norm(updates)), state))
    return found


# Sizes of the gradients -> how many of the steps are skipped.
CASES = {
    "a spike": ([1, 1.1, 0.9, 1, 1, 50, 1], {5}),
    "not before half of the window": ([1, 1, 50, 1, 1], set()),
    "small rises of a constant past": ([1] * 6 + [1.04, 1, 1.05], set()),
    "a new level is the normal one in time": ([1] * 8 + [9] * 7, {8}),
    "what is not finite, at any time": (
        [np.nan, 1, 1, np.inf, np.nan, 1, 1, 50],
        {0, 3, 4, 7},
    ),
    "too large a square is no infinity": ([1e25] * 6, set()),
    "zeros": ([0.0] * 6 + [1.0, 1.0], {6}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_jump_is_skipped_and_nothing_else(case):
    sizes, expected = CASES[case]
    rate = optax.linear_schedule(1.0, 0.0, 100)
    tx = optlab.skip_spikes(adamw(rate), window=WINDOW)
    found = run(tx, sizes)
    before = None
    for i, (norm, state) in enumerate(found):
        if i in expected:
            assert norm == 0
            kept = tx.init(PARAMS).inner if before is None else before.inner
            # Schedules and momenta stand where they were.
            jax.tree.map(np.testing.assert_array_equal, state.inner, kept)
        else:
            assert np.isfinite(norm) and (norm > 0 or not 0 < sizes[i] < 1e20)
        before = state
    numbers = optlab.skipped_steps((found[-1][1], {"other": 1}))
    assert int(numbers["skipped_steps"]) == len(expected)
    assert int(numbers["scaled_steps"]) == 0
    assert optlab.skipped_steps(optax.adam(1.0).init(PARAMS)) == {}


def test_a_jump_is_scaled_down_to_the_bound():
    tx = optlab.skip_spikes(sgd(1.0, momentum=0.0), window=WINDOW, action="scale")
    sizes = [1.0] * 6 + [50.0, np.nan]
    found = run(tx, sizes)
    root = np.sqrt(15)
    np.testing.assert_allclose(found[6][0], 1.06 * root, rtol=1e-5)
    assert found[7][0] == 0
    numbers = optlab.skipped_steps(found[-1][1])
    assert (int(numbers["skipped_steps"]), int(numbers["scaled_steps"])) == (1, 1)


def test_a_jump_of_the_loss_is_skipped_and_the_loss_is_asked_for():
    tx = optlab.skip_spikes(sgd(1.0), window=WINDOW, watch="loss")
    values = [2.0, 2.1, 1.9, 2.0, 2.0, 9.0, np.nan, 2.0]
    found = run(tx, [1.0] * 8, values)
    assert [norm == 0 for norm, _ in found] == [i in (5, 6) for i in range(8)]
    with pytest.raises(ValueError, match="value"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "bad", [{"window": 1}, {"factor": 0}, {"watch": "both!"}, {"action": "clip"}]
)
def test_arguments_out_of_range_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        optlab.skip_spikes(sgd(1.0), **bad)
