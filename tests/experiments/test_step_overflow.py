"""Gradients that are finite while their squares are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from experiments.trainer import optimizer as optimizers
from experiments.trainer.state import init_state
from experiments.trainer.step import batches_per_step, make_train_step


# Of the slopes below.
NORM = np.sqrt(sum(np.sum(np.sin(1.0 + np.arange(n)) ** 2) for n in (12, 3)))


class Steep:
    """A loss whose gradient is as large as the batch says."""

    roles = staticmethod(optlab.default_roles())

    def init(self, key):
        return {"hidden": {"kernel": jnp.ones((4, 3))}, "norm": {"scale": jnp.ones(3)}}

    def loss(self, params, batch, key):
        del key
        leaves = jax.tree.leaves(params)
        slopes = [jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape) for x in leaves]
        linear = sum(jnp.sum(x * s) for x, s in zip(leaves, slopes, strict=True))
        # Finite whatever the slope is.
        return batch * (linear - jax.lax.stop_gradient(linear)), {}


@pytest.mark.parametrize("name", optlab.registry.names())
def test_a_square_that_overflows_is_skipped_by_every_optimizer(small, name):
    config = small(optimizer__name=name, optimizer__learning_rate=0.01)
    task, entry = Steep(), optlab.registry.get(name)
    tx, peaks = optimizers.make_optimizer(config, task.roles)
    needs = entry.needs_for(dict(config.optimizer.kwargs))
    one = optax.constant_schedule(1.0)
    step = jax.jit(make_train_step(task, tx, one, needs=needs))
    state = init_state(task, tx, 0)
    peaks = {name: np.float32(value) for name, value in peaks.items()}
    for slope in (1.0, 1e10, 1e18, 1e20, 1e25, 1e38, 1.0, 1.0):
        batches = (np.float32(slope),) * batches_per_step(needs)
        before = state
        state, metrics = step(state, batches, peaks)
        skipped = slope >= 1e20
        assert int(state.bad_steps) == (int(before.bad_steps) + 1 if skipped else 0)
        np.testing.assert_allclose(metrics["grad_norm"] / slope, NORM, rtol=1e-5)
        if skipped:
            for a, b in zip(
                *map(jax.tree.leaves, (before.params, state.params)), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("slope", [0.0, 1e-20, 1.0, 1e25])
def test_the_norm_is_clipped_whatever_its_square_is(small, slope):
    config = small(optimizer__name="sgd", optimizer__weight_decay=0)
    task = Steep()
    tx, peaks = optimizers.make_optimizer(config, task.roles)
    step = make_train_step(task, tx, optax.constant_schedule(1.0), clip_norm=0.5)
    state = init_state(task, tx, 0)
    peaks = {name: np.float32(1.0) for name in peaks}
    new, _ = jax.jit(step)(state, (np.float32(slope),), peaks)
    assert int(new.bad_steps) == 0
    moved = optax.tree.norm(optax.tree.sub(new.params, state.params))
    np.testing.assert_allclose(moved, min(0.5, NORM * slope), rtol=1e-5, atol=1e-7)
