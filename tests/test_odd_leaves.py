"""Leaves out of the ordinary: complex, empty, or without a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.registry import get, names
from tests.helpers.conformance import ON_SPHERES, VARIANTS, extras, make, zoo

every_variant = pytest.mark.parametrize("name", [*names(), *VARIANTS])
# Their leaves' maths is right for complex numbers too.
COMPLEX = {
    "adamw": lambda: optax.adamw(1e-2, b2=0.95, weight_decay=0.0),
    "lion": lambda: optax.lion(1e-2, weight_decay=0.0),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
}
PLAIN = {"bias": jnp.arange(1.0, 4.0), "square": jnp.cos(jnp.arange(9.0).reshape(3, 3))}
EMPTY = {"no_rows": (0, 4), "no_columns": (3, 0), "nothing": (0,), "stack": (2, 0, 3)}


def without_decay(name):
    """The entry, which then asks for no parameters."""
    entry = VARIANTS.get(name, (name, {}))[0]
    scion = {"constrained": False} if entry == "scion" else {}
    return make(name, **scion)


@every_variant
def test_odd_leaves_change_nothing_for_the_others(name):
    tx = without_decay(name)
    on_sphere = VARIANTS.get(name, (name, {}))[0] in ON_SPHERES
    empty = {k: jnp.zeros(shape) for k, shape in EMPTY.items()}
    frozen = {"frozen": jnp.ones((2, 2))}

    def steps(params, grads, given, calls=2):
        state = tx.init(params)
        for _ in range(calls):
            updates, new = tx.update(grads, state, given, **extras(name, grads))
            assert jax.tree.structure(new) == jax.tree.structure(state)
            state = new
        return updates

    @jax.jit
    def all_ways():
        grads = jax.tree.map(jnp.sin, PLAIN)
        none = {**grads, "frozen": None}
        return {
            "plain": steps(PLAIN, grads, PLAIN),
            "no parameters": steps(PLAIN, grads, PLAIN if on_sphere else None),
            "empty": steps({**PLAIN, **empty}, {**grads, **empty}, {**PLAIN, **empty}),
            "frozen": steps({**PLAIN, **frozen}, none, {**PLAIN, **frozen}),
            # As with `eqx.filter` at first and the whole module later on.
            "module": steps({**PLAIN, "frozen": None}, none, {**PLAIN, "frozen": sum}),
        }

    results = all_ways()
    for way, updates in results.items():
        for leaf in PLAIN:
            np.testing.assert_allclose(
                updates[leaf], results["plain"][leaf], rtol=1e-5, atol=1e-6, err_msg=way
            )
    assert {k: results["empty"][k].shape for k in EMPTY} == EMPTY
    assert results["frozen"]["frozen"] is None and results["module"]["frozen"] is None


@pytest.mark.parametrize("name", names())
def test_decay_asks_for_parameters(name):
    decayed = {"weight_decay": 0.1}
    if not get(name).takes("weight_decay"):
        decayed = {} if name in ON_SPHERES else {"constrained": True}
    tx = make(name, **decayed)
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(
            lambda g: tx.update(g, tx.init(g), **extras(name, g)),
            {"w": PLAIN["square"]},
        )


def test_a_gradient_of_what_has_no_state_is_named():
    tx = optlab.cosmos(1e-2)
    state = tx.init({**PLAIN, "late": None})
    grads = {**PLAIN, "late": jnp.ones(3), "frozen": None}
    with pytest.raises(ValueError, match=r"'late' of shape .* does not fit the state"):
        tx.update(grads, state)


@pytest.mark.parametrize("name", names())
def test_complex_leaves_are_right_or_refused(name):
    leaf = jnp.array([1 + 1j, 2 - 3j, 1j, 5], jnp.complex64)
    tx = make(name)
    matrices = {"query": jnp.ones((3, 3), jnp.complex64)}
    if name in COMPLEX:
        for params in ({"bias": leaf}, matrices):
            ours, theirs = (
                t.update(params, t.init(params), params)[0]
                for t in (tx, COMPLEX[name]())
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs
            )
        return
    with pytest.raises(ValueError, match=r"'query' is complex.*split_real_and_imag"):
        tx.init(matrices)
    around = optax.contrib.split_real_and_imaginary(tx)
    if not get(name).needs:
        updates, _ = jax.eval_shape(
            lambda p: around.update(p, around.init(p), p), matrices
        )
        assert updates["query"].dtype == jnp.complex64
    if name in ("adahessian", "lanton", "scion", "spam", "stable_spam"):
        with pytest.raises(ValueError, match="'bias' is complex"):
            tx.init({"bias": leaf})
    else:  # There AdamW has it.
        eps = 1e-10 if name == "normuon" else 1e-8
        adamw = optax.scale_by_adam(0.95 if name.startswith("soap") else 0.9, 0.95, eps)
        params = {"bias": leaf}
        expected, state = adamw.update(params, adamw.init(params))[0], tx.init(params)
        for _ in range(2 if name.startswith("soap") else 1):
            updates, state = tx.update(params, state, params)
        np.testing.assert_allclose(updates["bias"], -1e-2 * expected["bias"], rtol=1e-5)


@every_variant
@pytest.mark.parametrize("mu_dtype", [None, "bfloat16"])
def test_strict_promotion_is_no_obstacle(name, mu_dtype):
    entry = VARIANTS.get(name, (name, {}))[0]
    kwargs = {}
    if get(entry).takes("mu_dtype"):
        kwargs["mu_dtype"] = mu_dtype
    tx, params = make(name, **kwargs), zoo(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.eval_shape(
            lambda p: tx.update(p, tx.init(p), p, **extras(name, p)), params
        )
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
