"""Optimizers that make updates that are not finite from gradients that are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from experiments.trainer import loop
from experiments.trainer.state import init_state
from experiments.trainer.step import make_train_step
from optlab.roles import leaf_name
from tests.experiments.test_train import read

LIMIT = 1e3


class Slope:
    """A task whose gradient is as large as the batch says."""

    def init(self, key):
        del key
        return {"a": jnp.ones(3), "b": jnp.ones(2), "c": jnp.ones(2)}

    def loss(self, params, batch, key):
        del key
        return batch * sum(jnp.sum(x) for x in params.values()), {}


def breaking(
    learning_rate, bad, *, leaf="b", breaks=lambda count, slope: slope > LIMIT
):
    """SGD that counts, and returns a bad value in one leaf now and then."""

    def update(updates, count, params=None):
        del params
        new = optax.tree.scale(-learning_rate, updates)
        is_bad = breaks(count, jnp.max(jnp.abs(jax.tree.leaves(updates)[0])))

        def broken(path, x):
            here = leaf_name(path) == leaf
            return jnp.where(is_bad, x.at[..., -1].set(bad), x) if here else x

        return jax.tree_util.tree_map_with_path(broken, new), count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_an_update_that_is_not_finite_is_undone(bad):
    task = Slope()
    tx = optax.inject_hyperparams(breaking, static_args=("leaf", "breaks"))(
        learning_rate=1.0, bad=bad
    )
    step = jax.jit(
        make_train_step(task, tx, optax.constant_schedule(1.0), ema_decay=0.5)
    )
    state = init_state(task, tx, 0, with_ema=True)
    peaks = {"learning_rate": np.float32(1e-3)}
    for batch in (1.0, 2.0):
        state, metrics = step(state, (batch,), peaks)
        assert int(metrics["bad_update"]) == -1 and metrics["update_rms"] > 0
    before = state
    state, metrics = step(state, (2 * LIMIT,), peaks)
    assert int(metrics["bad_leaf"]) == -1
    if np.isfinite(bad):  # its square is not, the parameters are
        assert (int(metrics["bad_steps"]), int(metrics["bad_update"])) == (0, -1)
        assert state.params["b"][-1] == np.float32(bad)
        return
    assert (int(metrics["bad_steps"]), int(metrics["bad_update"])) == (1, 1)
    assert metrics["update_rms"] == 0
    kept, left = (
        jax.tree.leaves((x.params, x.opt_state, x.ema)) for x in (before, state)
    )
    jax.tree.map(np.testing.assert_array_equal, kept, left)
    assert int(state.step) == 3
    state, metrics = step(state, (1.0,), peaks)
    assert (int(metrics["bad_steps"]), int(metrics["bad_update"])) == (0, -1)
    assert int(state.opt_state.inner_state) == 3
    np.testing.assert_allclose(state.params["b"], 1 - 4e-3, rtol=1e-6)


def test_a_run_skips_such_updates_names_the_leaf_and_ends(small, tmp_path, monkeypatch):
    def third(learning_rate):
        breaks = lambda count, slope: count == 2  # noqa: E731
        return breaking(learning_rate, jnp.nan, leaf="norm/scale", breaks=breaks)

    monkeypatch.setattr(optlab.registry, "_ENTRIES", dict(optlab.registry._ENTRIES))
    optlab.register("third", third)
    # The count is undone too, so this one never makes its third update.
    config = small(
        optimizer__name="third", optimizer__learning_rate=0.1, train__max_bad_steps=3
    )
    assert loop.train(config, str(tmp_path)) == 3
    records, result = read(tmp_path)
    assert (result["reason"], result["steps"]) == ("diverged", 5)
    assert [x.get("bad_steps") for x in records] == [None, None, 1, 2, 3]
    assert all(np.isfinite([x["loss"], x["grad_norm"]]).all() for x in records)
    log = (tmp_path / "log.txt").read_text()
    said = "step 3: the optimizer's update of norm/scale is not finite, skipped (1 in a"
    assert said in log
