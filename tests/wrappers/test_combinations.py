"""Cautious steps, spheres and neurons: where they act, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import directions
from optlab.compose import descend
from optlab.registry import adamw, get, names, sgd
from tests.helpers.conformance import ROLES, zoo

PARAMS = {"embed": jnp.ones((5, 4)), "w": jnp.cos(jnp.arange(24.0)).reshape(4, 6)}


def grads(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), PARAMS
    )


def two_steps(tx):
    state = tx.init(PARAMS)
    for seed in (1, 2):
        updates, state = jax.jit(tx.update)(grads(seed), state, PARAMS)
    return updates


def test_the_direction_is_masked_wherever_it_is_made():
    """Before decay and rate, through chains, partitions and injected numbers."""
    plain = two_steps(optlab.muon(1e-2))
    decayed = {"weight_decay": 0.1}
    ways = {
        "optimizer": optlab.cautious(optlab.muon(1e-2, **decayed)),
        "chain": optlab.cautious(
            optax.chain(optlab.muon(1.0, **decayed), optax.scale(1e-2))
        ),
        "inject": optlab.cautious(
            optlab.inject_hyperparams(optlab.muon)(1e-2, weight_decay=0.1)
        ),
        "partition": optlab.cautious(
            optax.partition(
                {"a": optlab.muon(1e-2, **decayed)},
                {"embed": "a", "w": "a"},
                mask_compatible_extra_args=True,
            )
        ),
        "by hand": optax.chain(
            optlab.cautious(optlab.directions.muon()),
            optax.add_decayed_weights(0.1),
            optax.scale(-1e-2),
        ),
        "finite": optlab.cautious(
            optax.apply_if_finite(optlab.muon(1e-2, **decayed), 3)
        ),
    }
    decay = jax.tree.map(lambda p: -1e-3 * p, PARAMS)
    for name, tx in ways.items():
        found = jax.tree.map(jnp.subtract, two_steps(tx), decay)
        for key, g in grads(2).items():
            kept = -plain[key] * g > 0
            expected = np.where(kept, plain[key] / max(kept.mean(), 1e-3), 0)
            np.testing.assert_allclose(found[key], expected, atol=1e-6, err_msg=name)


def test_what_is_not_of_this_library_says_whether_it_descends():
    ours = two_steps(optlab.cautious(adamw(1e-2, b2=0.999)))
    theirs = two_steps(optlab.cautious(optax.adam(1e-2), descends=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        *(ours, theirs),
    )
    inner = sgd(1e-2)
    closed = optax.GradientTransformation(
        inner.init, lambda g, s, p=None: inner.update(g, s, p)
    )
    hidden = optlab.cautious(closed)
    with pytest.raises(ValueError, match="passes no extra arguments on"):
        hidden.update(PARAMS, hidden.init(PARAMS), PARAMS)


def test_silent_rows_do_not_make_the_others_larger_with_live():
    silent = {"embed": jnp.zeros((100, 4)).at[0].set(1.0)}
    params = {"embed": jnp.ones((100, 4))}
    sizes = {}
    for rescale in ("mean", "live", "none"):
        tx = optlab.cautious(sgd(1.0, momentum=0.0), rescale=rescale)
        updates, _ = tx.update(silent, tx.init(params), params)
        sizes[rescale] = -float(updates["embed"][0, 0])
    np.testing.assert_allclose(
        [sizes["mean"], sizes["live"], sizes["none"]], [100, 1, 1], rtol=1e-6
    )


def test_a_zero_matrix_has_no_sphere_and_is_named():
    tx = optlab.muon_h(1e-2, roles=ROLES)
    params = zoo()
    params["layers"]["kernel"] = params["layers"]["kernel"].at[1].set(0.0)
    with pytest.raises(ValueError, match="slice 1 of 'layers/kernel' is zero"):
        tx.init(params)
    mesh = optlab.sharding.make_mesh({"data": 8})
    placed = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    with pytest.raises(ValueError, match="slice 1 of 'layers/kernel' is zero"):
        optlab.sharding.init_state(tx, placed)
    # Under jit nobody can be told, but nothing is silent.
    state = jax.jit(tx.init)(params)
    updates, _ = jax.jit(tx.update)(zoo(seed=1), state, params)
    kernel = updates["layers"]["kernel"]
    assert jnp.isnan(kernel[1]).all() and jnp.isfinite(kernel[0]).all()
    vectors = {"w": jnp.ones((3, 3)), "bias": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"'bias' of shape .* is no hidden matrix"):
        optlab.hyperball(optlab.scale_by_muon(), 1e-2).init(vectors)
    with pytest.raises(ValueError, match="learning_rate"):
        optlab.hyperball(optlab.scale_by_muon(), None)


def held(tx, inject):
    """The same transform in everything that hides what it was made with."""
    labels = {"w": "a"}
    return {
        "alone": tx,
        "chain": optax.chain(optax.clip(1.0), tx, optlab.normalize_neurons()),
        "masked": optax.masked(tx, {"w": True}),
        "partition": optax.partition({"a": tx}, labels),
        "inject": optlab.inject_hyperparams(inject)(0.5),
        "by_role": optlab.by_role(tx, optax.scale_by_adam()),
        "finite": optax.apply_if_finite(tx, 3),
        "small_state": optlab.small_state(tx),
        "noise_adaptive": optlab.noise_adaptive(tx),
        "cautious": optlab.cautious(tx),
        "skip_spikes": optlab.skip_spikes(tx),
        "reset_every": optlab.reset_every(tx, 10),
    }


def test_a_sphere_takes_directions_and_no_optimizers():
    """Whose updates descend: the loss would rise."""
    params = {"w": PARAMS["w"]}

    def init(direction):
        return jax.eval_shape(optlab.hyperball(direction, 0.1).init, params)

    def refused(direction):
        with pytest.raises(ValueError, match="direction: an optimizer, whose updates"):
            init(direction)

    for tx in held(optlab.muon(1e-2), optlab.muon).values():
        refused(tx)
    turned = held(
        directions.muon(), lambda momentum: directions.muon(momentum=momentum)
    )
    for tx in turned.values():
        init(tx)
    for name in names():
        refused(get(name).factory(optax.constant_schedule(1e-2)))
        if hasattr(directions, name):
            init(getattr(directions, name)())
            init(get(name).factory(None))
    refused(optax.chain(directions.muon(), sgd(1.0)))
    # Nor does what makes steps of directions take steps.
    tx = descend(optlab.muon(1e-2), 1e-3)
    with pytest.raises(ValueError, match="give descend a direction such as"):
        jax.eval_shape(tx.init, params)


def test_a_step_on_the_sphere_has_its_size_and_bfloat16_does_not_drift():
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12)))}
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    roles = optlab.default_roles(stacked=("w",))
    tx = optlab.hyperball(optax.scale_by_adam(), 0.05, roles=roles)
    update, state = jax.jit(tx.update), tx.init(params)
    start = jnp.linalg.norm(params["w"].astype(jnp.float32), axis=(1, 2))
    for seed in range(30):
        g = np.random.default_rng(seed + 1).standard_normal((2, 8, 12))
        updates, state = update({"w": jnp.asarray(g, jnp.bfloat16)}, state, params)
        sizes = jnp.linalg.norm(updates["w"].astype(jnp.float32), axis=(1, 2))
        # Along the sphere; what points outwards is taken back.
        assert (sizes < 0.052 * start).all()
        assert seed or (sizes > 0.045 * start).all()
        params = optax.apply_updates(params, updates)
    end = jnp.linalg.norm(params["w"].astype(jnp.float32), axis=(1, 2))
    np.testing.assert_allclose(end, start, rtol=2e-3)


@pytest.mark.parametrize(
    ("axis", "shape", "neurons"),
    [
        ("output", (6, 15), (1, 15)),
        ("output", (15, 6), (1, 6)),
        ("longer", (6, 15), (1, 15)),
        ("longer", (15, 6), (15, 1)),
        ("longer", (6, 6), (1, 6)),
    ],
)
def test_neurons_step_by_one_length(axis, shape, neurons):
    tx = optlab.normalize_neurons(0.0, axis=axis)
    u = jnp.asarray(np.random.default_rng(0).lognormal(size=shape), jnp.float32)
    params = {"w": u, "bias": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params))
    assert state.inner_state.nu["w"].shape == neurons
    lengths = jnp.linalg.norm(updates["w"], axis=neurons.index(1))
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    np.testing.assert_allclose(*map(jnp.linalg.norm, (updates["w"], u)), rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], params["bias"])
