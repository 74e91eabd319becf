"""The numbers of a layer against NumPy, and against what an update really did."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.inside.diagnostics import layer_diagnostics

ROLES = optlab.default_roles(stacked=("layers",))
SHAPES = {
    "layers": {"up": {"kernel": (2, 6, 10)}, "norm": {"scale": (2, 6)}},
    "embed": (12, 6),
    "bias": (5,),
}


def tree(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    leaves = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    return structure.unflatten(leaves)


def after(tx, steps=3, **extra):
    """The last of a few updates, and its diagnostics."""
    params, state = tree(0), tx.init(tree(0))
    for seed in range(1, steps + 1):
        grads, before = tree(seed), state
        updates, state = tx.update(grads, before, params, **extra)
    return grads, updates, params, before, state


def test_norms_and_ratios_of_every_layer():
    seen = after(optax.adam(0.1))
    grads, updates, params, _, state = seen
    values = layer_diagnostics(*seen, roles=ROLES)
    assert set(values) == {
        "layer_grad_norm",
        "layer_update_ratio",
        "layer_orthogonality_error",
        "layer_momentum_norm",
    }
    kernel = "layers/up/kernel"
    assert set(values["layer_momentum_norm"]) == {kernel}
    for i in range(2):
        gradient, update, weight, momentum = (
            np.asarray(x["layers"]["up"]["kernel"][i], np.float64)
            for x in (grads, updates, params, state[0].mu)
        )
        found = {name: v[kernel][i] for name, v in values.items()}
        norm = np.linalg.norm
        np.testing.assert_allclose(found["layer_grad_norm"], norm(gradient), rtol=1e-5)
        ratio = norm(update) / norm(weight)
        np.testing.assert_allclose(found["layer_update_ratio"], ratio, rtol=1e-5)
        largest = norm(momentum, 2)
        assert 0.97 * largest < found["layer_momentum_norm"] < 1.0001 * largest
        s = np.linalg.svd(update, compute_uv=False)
        s *= np.sqrt(6) / norm(s)
        error = norm(s**2 - 1) / np.sqrt(6)
        np.testing.assert_allclose(found["layer_orthogonality_error"], error, rtol=1e-4)
    # A stacked vector is a layer for each of its rows, an embedding one.
    assert values["layer_grad_norm"]["layers/norm/scale"].shape == (2,)
    assert values["layer_grad_norm"]["embed"].shape == ()


def test_an_orthogonal_update_has_no_error():
    exact = optlab.orthogonalize(
        tree(0)["layers"]["up"]["kernel"], steps=12, coeffs=(1.5, -0.5, 0.0)
    )
    seen = list(after(optax.sgd(0.1)))
    seen[1]["layers"]["up"]["kernel"] = exact
    errors = layer_diagnostics(*seen, roles=ROLES)["layer_orthogonality_error"]
    assert np.max(errors["layers/up/kernel"]) < 1e-3


def test_the_rates_of_lanton_are_what_its_updates_show():
    arguments = {"alpha": 0.5, "exponent": 1.0}
    adapted = after(optlab.lanton(0.1, roles=ROLES, **arguments))
    plain = after(optlab.lanton(0.1, roles=ROLES, alpha=float("inf")))
    values = layer_diagnostics(*adapted, roles=ROLES, arguments=arguments)
    assert values["layer_noise"]["embed"] > 0
    rates = values["layer_rate"]
    assert set(rates) == {"embed", "bias", "layers/up/kernel", "layers/norm/scale"}
    for get, name in (
        (lambda t: t["layers"]["up"]["kernel"], "layers/up/kernel"),
        (lambda t: t["layers"]["norm"]["scale"], "layers/norm/scale"),
        (lambda t: t["embed"][None], "embed"),
    ):
        for i, rate in enumerate(np.ravel(rates[name])):
            shown = np.linalg.norm(get(adapted[1])[i]) / np.linalg.norm(
                get(plain[1])[i]
            )
            np.testing.assert_allclose(rate, shown, rtol=1e-4)
    assert np.min(rates["layers/up/kernel"]) < 0.99


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_spikes_of_spam_are_what_it_clips(density):
    arguments = {"spike_threshold": 3.0, "clip_start_step": 2, "density": density}
    tx = optlab.spam(0.1, roles=ROLES, b1=0.0, b2=0.5, **arguments)
    seen = after(tx)
    values = layer_diagnostics(*seen, roles=ROLES, arguments=arguments)["layer_spikes"]
    grads, _, _, before, state = seen
    old, new = (
        jax.tree.leaves(s, is_leaf=lambda x: hasattr(x, "nu"))[0]
        for s in (before, state)
    )
    # Without momentum the new one is the clipped gradient: above the limit or at it.
    limit = np.sqrt(3.0 * np.asarray(old.nu["layers"]["up"]["kernel"]))
    kept = np.abs(np.asarray(new.mu["layers"]["up"]["kernel"]))
    share = np.isclose(kept, limit, rtol=1e-6).mean((1, 2))
    assert 0.05 < share.min() < share.max() < 0.7
    np.testing.assert_allclose(values["layers/up/kernel"], share, rtol=1e-6)
    bias = np.abs(grads["bias"]) > np.sqrt(3.0 * np.asarray(old.nu["bias"]))
    np.testing.assert_allclose(values["bias"], bias.mean(), rtol=1e-6)


def test_what_root_clips_and_the_trace_of_a_hessian():
    tx = optlab.root(0.1, roles=ROLES, quantile=0.8, ns_steps=2)
    diagonal = tree(9)
    seen = after(tx)
    values = layer_diagnostics(
        *seen,
        roles=ROLES,
        arguments={"quantile": 0.8},
        extra={"hessian_diag": diagonal},
    )
    kernel = "layers/up/kernel"
    root = jax.tree.leaves(seen[-1], is_leaf=lambda x: hasattr(x, "mu"))
    momentum = next(x.mu for x in root if type(x).__name__ == "ScaleByRootState")
    for i in range(2):
        m = np.abs(np.asarray(momentum["layers"]["up"]["kernel"][i], np.float64))
        bound = np.quantile(m, 0.8)
        share = 1 - (np.minimum(m, bound) ** 2).sum() / (m**2).sum()
        np.testing.assert_allclose(values["layer_clipped"][kernel][i], share, rtol=1e-4)
        np.testing.assert_allclose(
            values["layer_hessian_trace"][kernel][i],
            jnp.sum(diagonal["layers"]["up"]["kernel"][i]),
            rtol=1e-5,
        )
    trace = values["layer_hessian_trace"]["bias"]
    np.testing.assert_allclose(trace, jnp.sum(diagonal["bias"]), rtol=1e-5)
