"""Partition by role, decay, rates and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab

PARAMS = {
    "embed": jnp.full((5, 4), 0.5),
    "w": jnp.linspace(-1, 1, 24).reshape(4, 6),
    "bias": jnp.full(6, 2.0),
}
GRADS = jax.tree.map(jnp.cos, PARAMS)


def first_update(tx, params=PARAMS, grads=GRADS):
    return tx.update(grads, tx.init(params), params)[0]


def test_other_leaves_are_adamw_with_their_own_rate_and_decay():
    tx = optlab.cosmos(
        1e-2, rank=2, weight_decay=0.3, adam_learning_rate=1e-3, adam_weight_decay=0.5
    )
    adamw = optax.adamw(1e-3, 0.9, 0.95, 1e-8, weight_decay=0.5)
    ours, theirs = first_update(tx), first_update(adamw)
    for leaf in ("embed", "bias"):
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=1e-6)
    same = optlab.cosmos(1e-2, rank=2, weight_decay=0.3)
    theirs = first_update(optax.adamw(1e-2, 0.9, 0.95, 1e-8, weight_decay=0.3))
    np.testing.assert_allclose(first_update(same)["bias"], theirs["bias"], rtol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"embed": True, "w": True, "bias": False},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ],
)
def test_decay_masks_are_trees_or_functions(mask):
    decayed, plain = (
        first_update(
            optlab.cosmos(1e-2, rank=2, weight_decay=decay, weight_decay_mask=mask)
        )
        for decay in (0.1, 0.0)
    )
    for leaf, factor in (("embed", 1e-3), ("w", 1e-3), ("bias", 0.0)):
        np.testing.assert_allclose(
            decayed[leaf] - plain[leaf], -factor * PARAMS[leaf], atol=1e-7
        )


def test_a_mask_with_a_hole_names_the_leaf():
    tx = optlab.cosmos(1e-2, weight_decay=0.1, weight_decay_mask={"w": True})
    with pytest.raises(ValueError, match="weight_decay_mask says nothing about"):
        tx.init(PARAMS)


def test_rates_in_force_are_found_by_name_and_group():
    injected = optax.inject_hyperparams(
        lambda learning_rate, adam_learning_rate: optlab.cosmos(
            learning_rate, adam_learning_rate=adam_learning_rate, rank=2
        ),
        hyperparam_dtype=jnp.float32,
    )
    one = injected(learning_rate=3e-2, adam_learning_rate=1e-3)
    rates = optlab.current_learning_rate(one.init(PARAMS))
    np.testing.assert_allclose(rates["learning_rate"], 3e-2)
    np.testing.assert_allclose(rates["adam_learning_rate"], 1e-3)
    sgd = optax.inject_hyperparams(optax.sgd)
    two = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"slow": sgd(1e-3), "fast": sgd(1e-1)},
            {"embed": "slow", "w": "fast", "bias": "slow"},
        ),
    )
    rates = optlab.current_learning_rate(two.init(PARAMS))
    assert set(rates) == {"slow/learning_rate", "fast/learning_rate"}
    np.testing.assert_allclose(rates["fast/learning_rate"], 1e-1)
    assert optlab.current_learning_rate(optax.adam(1e-3).init(PARAMS)) == {}


def test_two_rates_share_one_program():
    tx = optax.inject_hyperparams(
        lambda learning_rate: optlab.cosmos(learning_rate, rank=2),
        hyperparam_dtype=jnp.float32,
    )(1e-2)
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    slow, _ = update(GRADS, state, PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(1e-1)
    fast, _ = update(GRADS, state, PARAMS)
    np.testing.assert_allclose(10 * slow["w"], fast["w"], rtol=1e-5)
    assert update._cache_size() == 1


def test_injected_betas_of_bfloat16_parameters_stay_float32():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = optax.inject_hyperparams(optlab.registry.adamw, hyperparam_dtype=jnp.float32)(
        1e-2, b2=0.999
    )
    state = tx.init(params)
    assert state.hyperparams["b2"].dtype == jnp.float32
    updates, _ = tx.update(params, state, params)
    assert all(
        np.isfinite(np.asarray(u, np.float32)).all() for u in jax.tree.leaves(updates)
    )
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_optimizers_are_built_inside_jit_without_leaks():
    with jax.checking_leaks():
        updates = jax.jit(
            lambda g: first_update(optlab.cosmos(1e-2, rank=2), PARAMS, g)
        )(GRADS)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_our_arithmetic_survives_strict_dtype_promotion():
    tx = optlab.scale_by_cosmos(rank=2)
    params = {"w": PARAMS["w"]}
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.jit(tx.update)(params, tx.init(params))
    assert updates["w"].dtype == jnp.float32


def test_an_optimizer_from_outside_joins_the_registry():
    def mine(learning_rate, *, weight_decay=0.0):
        return optax.adamw(learning_rate, weight_decay=weight_decay)

    try:
        momentum = {optax.TraceState: lambda seen: {"layer_mine": seen.after.trace}}
        optlab.register("mine", mine, needs=("hessian_diag",), diagnose=momentum)
        entry = optlab.registry.get("mine")
        assert (entry.factory, entry.needs) == (mine, ("hessian_diag",))
        offered = {"weight_decay": 0.5, "roles": None}
        assert entry.taken(offered) == {"weight_decay": 0.5}
        tx, grads = entry.build(1.0, **offered), {"w": jnp.zeros(2)}
        params = {"w": jnp.ones(2)}
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], -0.5)
        tx = optax.chain(optax.trace(0.5), optax.scale(-1.0))
        seen = params, *tx.update(params, tx.init(params), params)
        values = optlab.diagnostics.layer_diagnostics(
            *(seen[0], seen[1], params, tx.init(params), seen[2])
        )
        np.testing.assert_allclose(values["layer_mine"]["w"], params["w"])
        with pytest.raises(ValueError, match="'mine' is registered already"):
            optlab.register("mine", optax.sgd)
    finally:
        optlab.registry._ENTRIES.pop("mine")
    with pytest.raises(
        ValueError, match="unknown optimizer 'csmos': did you mean 'cosmos'"
    ):
        optlab.registry.get("csmos")


def test_an_injected_integer_is_told_what_it_needs():
    tx = optax.inject_hyperparams(optlab.cosmos)(1e-2, rank=2)
    with pytest.raises(ValueError, match=r"rank must be .* static_args"):
        tx.init(PARAMS)


MADE = """
import functools
import optax

def plain(learning_rate, *, momentum=0.5):
    return optax.sgd(learning_rate, momentum)

class Plain:
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

class Callable:
    def __call__(self, learning_rate):
        return optax.sgd(learning_rate)

thing = Callable()
half = functools.partial(plain, momentum=0.5)
third = functools.partial(plain, momentum=0.3)
one = lambda learning_rate: optax.sgd(learning_rate)
two = lambda learning_rate: optax.adam(learning_rate)
"""


def test_a_factory_made_again_is_the_same_one(monkeypatch):
    """A config file that is read again makes its functions again."""
    monkeypatch.setattr(optlab.registry, "_ENTRIES", {})

    def made(path):
        found = {}
        exec(compile(MADE, path, "exec"), found)
        return found

    first, again, other = made("a.py"), made("a.py"), made("b.py")
    names = ("plain", "Plain", "thing", "half", "third", "one", "two")
    for name in names:
        optlab.register(name, first[name])
        optlab.register(name, again[name])
        assert optlab.registry.get(name).factory is again[name]
        for wrong in (other[name], optax.sgd, *(again[n] for n in names if n != name)):
            with pytest.raises(ValueError, match=f"'{name}' is registered already"):
                optlab.register(name, wrong)
    for cell in ("/tmp/ipykernel_1/2.py", "/tmp/ipykernel_1/3.py", "<stdin>"):
        optlab.register("typed in", made(cell)["plain"])
    with pytest.raises(ValueError, match=r"as plain of .*/a\.py, .* plain of .*/b\.py"):
        optlab.register("plain", other["plain"])
    for wrong in ((3, first["plain"]), ("", first["plain"]), ("free", 3)):
        with pytest.raises(ValueError, match="allowed a"):
            optlab.register(*wrong)
