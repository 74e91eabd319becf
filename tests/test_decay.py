"""What `describe` says of decay, and the mask in one word."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.registry import get, names
from tests.helpers.conformance import ON_SPHERES, ROLES, make

PARAMS = {
    "bias": jnp.ones(4),
    "embed": jnp.ones((5, 4)),
    "layers": {"bias": jnp.ones((2, 4)), "kernel": jnp.ones((2, 4, 4))},
}
NONE = dict.fromkeys(("bias", "embed", "layers/bias", "layers/kernel"), False)
RULE = optlab.default_roles(stacked=("^layers/",))


def taking(argument):
    """The entries whose factories take an argument."""
    return [n for n in names() if get(n).takes(argument)]


def decays(tx):
    return {row.path: row.decay for row in optlab.describe(PARAMS, RULE, tx)}


def kernel(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: optlab.roles.leaf_name(path).endswith("kernel"), params
    )


@pytest.mark.parametrize("name", names())
def test_the_table_has_the_decay_that_the_optimizer_has(name):
    if name in ON_SPHERES:
        vectors = {**NONE, "bias": 0.5, "embed": 0.5, "layers/bias": 0.5}
        assert decays(make(name)) == NONE
        assert decays(make(name, adam_weight_decay=0.5)) == vectors
        return
    if not get(name).takes("weight_decay"):
        assert decays(make(name)) == dict.fromkeys(NONE, 1.0)  # Scion's shrinking.
        assert decays(make(name, constrained=False)) == NONE
        return
    assert decays(make(name)) == NONE
    assert decays(make(name, weight_decay=0.1)) == dict.fromkeys(NONE, 0.1)
    schedule = optax.constant_schedule(0.1)
    assert decays(make(name, weight_decay=schedule)) == dict.fromkeys(NONE, True)
    masked = make(name, weight_decay=0.1, weight_decay_mask="matrices")
    assert decays(masked) == {**NONE, "embed": 0.1, "layers/kernel": 0.1}
    if get(name).takes("adam_weight_decay"):
        apart = decays(make(name, weight_decay=0.1, adam_weight_decay=0.5))
        assert apart == {**dict.fromkeys(NONE, 0.5), "layers/kernel": 0.1}


def decayed():
    return optlab.cosmos(1e-2, rank=2, roles=RULE, weight_decay=0.1)


@pytest.mark.parametrize("name", taking("distribute"))
def test_the_table_has_the_roles_that_the_optimizer_has(name):
    for chosen in (RULE, lambda path, leaf: optlab.VECTOR):
        tx = get(name).factory(1e-2, roles=chosen)
        expected = [row.role for row in optlab.describe(PARAMS, chosen)]
        assert [row.role for row in optlab.describe(PARAMS, tx)] == expected


LABELS = {"bias": "b", "embed": "a", "layers": "a"}
WRAPPED = {
    "chain": (lambda: optax.chain(optax.clip(1.0), decayed()), 0.1, NONE.keys()),
    "finite": (lambda: optax.apply_if_finite(decayed(), 3), 0.1, NONE.keys()),
    "multi": (lambda: optax.MultiSteps(decayed(), 2), 0.1, NONE.keys()),
    "masked": (lambda: optax.masked(decayed(), kernel), 0.1, {"layers/kernel"}),
    "partition": (
        lambda: optax.partition({"a": decayed(), "b": optax.sgd(1e-2)}, LABELS),
        *(0.1, NONE.keys() - {"bias"}),
    ),
    "inject": (
        lambda: optax.inject_hyperparams(optlab.registry.adamw)(1e-2, weight_decay=0.1),
        *(True, NONE.keys()),
    ),
    "direction": (
        lambda: optax.chain(
            optlab.directions.cosmos(rank=2, roles=RULE),
            optax.add_decayed_weights(0.1, kernel),
            optax.scale(-1e-2),
        ),
        *(True, {"layers/kernel"}),
    ),
    # Not of this library: whether there is one, and no weight.
    "optax": (lambda: optax.adamw(1e-2), True, NONE.keys()),
    "optax, masked": (
        lambda: optax.adamw(1e-2, mask=kernel),
        *(True, {"layers/kernel"}),
    ),
    "optax, zero": (lambda: optax.adamw(1e-2, weight_decay=0.0), True, set()),
    "optax, sgd": (lambda: optax.sgd(1e-2), True, set()),
    "optax, lamb": (lambda: optax.lamb(1e-2), True, set()),
    "optax, inside": (
        lambda: optax.apply_if_finite(optax.adamw(1e-2, mask=kernel), 3),
        *(True, {"layers/kernel"}),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_decay_is_found_inside_wrappers_and_in_optax(name):
    make_one, weight, where = WRAPPED[name]
    assert decays(make_one()) == {**NONE, **dict.fromkeys(where, weight)}
    table = optlab.describe(PARAMS, make_one())
    assert [row.decay for row in table] == list(decays(make_one()).values())


def test_the_column_prints_the_weight():
    lines = str(optlab.describe(PARAMS, RULE, decayed())).splitlines()
    assert all(line.split()[-2] == "0.1" for line in lines[2:-1])
    needy = optax.GradientTransformationExtraArgs(
        lambda p: (), lambda u, s, p=None, *, value: (u, s)
    )
    assert decays(needy) == dict.fromkeys(NONE)
    assert "  ?  " in str(optlab.describe(PARAMS, RULE, needy))


@pytest.mark.parametrize("name", taking("weight_decay_mask"))
def test_matrices_in_one_word_decay_and_vectors_do_not(name):
    params = {"norm": {"scale": jnp.ones(3)}, "embed": jnp.ones((4, 3))}
    grads = jax.tree.map(jnp.zeros_like, params)
    decay = "adam_weight_decay" if name in ON_SPHERES else "weight_decay"
    own = {decay: 0.5, "weight_decay_mask": "matrices", "roles": ROLES}
    tx = make(name, 0.1, **own)
    needed = {"hessian_diag": grads} if get(name).needs else {}
    state = tx.init(params)
    for _ in range(2):  # SOAP decays from the second call on.
        updates, state = tx.update(grads, state, params, **needed)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)
    np.testing.assert_allclose(updates["embed"], -0.05, rtol=1e-6)
