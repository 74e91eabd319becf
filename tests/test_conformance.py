"""Every registry entry keeps the same promises over one tree of all kinds of leaves."""

import inspect
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optlab
from optlab.registry import get, names
from tests.helpers.conformance import (
    LAYOUTS,
    MATRICES,
    OWN_TRANSFORM,
    ROLES,
    SHAPES,
    VARIANTS,
    extras,
    jitted,
    layout,
    make,
    zoo,
)

every_entry = pytest.mark.parametrize("name", names())
every_variant = pytest.mark.parametrize("name", [*names(), *VARIANTS])


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


def assert_close(tree, expected):
    """Equal to float32's rounding, leaf by leaf, as seen from the largest entry."""

    def compare(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4 * np.abs(b).max())

    jax.tree.map(compare, tree, expected)


@jax.jit
@jax.value_and_grad
def distance(params):
    """The squares of what is between `params` and other ones, compiled once for all."""
    apart = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, zoo(seed=1))
    return sum(jax.tree.leaves(apart))


@every_entry
def test_every_matrix_has_state_of_the_method_itself(name):
    rows = optlab.describe(zoo(), ROLES, make(name))
    matrices = {row.path: row for row in rows if row.role.startswith(("matrix", "2 "))}
    assert set(matrices) == MATRICES
    for row in matrices.values():
        assert OWN_TRANSFORM.get(name, name) in row.optimizer
        assert row.state_bytes > 0


@every_variant
def test_state_layout_is_pinned(name):
    assert layout(name) == json.loads(LAYOUTS.read_text())[name]


@every_entry
def test_first_steps_descend_and_compile_once(name):
    tx, update = jitted(name)
    params, state = zoo(), tx.init(zoo())
    compiled = update._cache_size()
    start, grads = distance(params)
    for _ in range(4):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        end, grads = distance(params)
    assert end < start
    assert update._cache_size() <= compiled + 1


@every_variant
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_structure_shapes_and_dtypes_are_stable_through_cond(name, dtype):
    tx, _ = jitted(name)
    params = zoo(dtype)

    def step(grads, state, params):
        new = tx.update(grads, state, params, **extras(name, grads))
        return jax.lax.cond(True, lambda: new, lambda: (grads, state))

    state = jax.eval_shape(tx.init, params)
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.uint32), leaf.dtype
    updates, new_state = jax.eval_shape(step, params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@every_entry
def test_bfloat16_parameters_are_updated_in_float32(name):
    params = zoo(jnp.bfloat16)
    tx = make(name)
    state = tx.init(params)
    grads = zoo(jnp.bfloat16, seed=1)
    updates, _ = jax.jit(tx.update)(grads, state, params, **extras(name, grads))
    assert_finite(updates)
    # The arithmetic is float32's, with one cast at the end.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (grads, params))
    expected, _ = jitted(name)[1](wide[0], state, wide[1])
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x.astype(jnp.float32), updates), expected, rtol=1e-2
    )


@every_entry
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_degenerate_gradients_stay_finite(name, scale):
    tx, update = jitted(name)
    params = zoo()
    state = tx.init(params)
    for factor in (scale, scale, 1.0):
        updates, state = update(zoo(seed=1, scale=factor), state, params)
        assert_finite(updates)
    if scale < 1:
        moved = jax.tree.map(lambda u: jnp.abs(u).max(), updates)
        assert all(float(m) > 0 for m in jax.tree.leaves(moved))


@every_entry
def test_a_nan_stays_in_its_layer(name):
    tx, update = jitted(name)
    params, state = zoo(), tx.init(zoo())
    for seed in (1, 2):
        grads = zoo(seed=seed)
        for part, place in (("square", (0, 1)), ("layers", (0, 0, 1)), ("embed", 0)):
            (leaf,) = {"kernel", "embedding"} & grads[part].keys()
            grads[part][leaf] = grads[part][leaf].at[place].set(jnp.nan)
        updates, state = update(grads, state, params)
    updates["layers"]["kernel"] = updates["layers"]["kernel"][1]
    assert np.isnan(np.asarray(updates["square"].pop("kernel"))).any()
    updates["embed"].pop("embedding")
    assert_finite(updates)


@every_entry
def test_stacked_layers_equal_separate_ones(name):
    tx = make(name)
    stacked = {"layers": {"kernel": zoo()["layers"]["kernel"]}}
    apart = {
        f"layer{i}": {"kernel": k} for i, k in enumerate(stacked["layers"]["kernel"])
    }
    results = []
    for params in (stacked, apart):
        state, grads = tx.init(params), jax.tree.map(jnp.sin, params)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(
                grads, state, params, **extras(name, grads)
            )
        results.append(updates)
    one = results[0]["layers"]["kernel"]
    other = jnp.stack([u["kernel"] for u in results[1].values()])
    assert_close(one, other)


@every_entry
def test_the_program_does_not_grow_with_depth(name):
    def size(depth):
        shapes = {"up": (depth, 8, 24), "down": (depth, 24, 8)}
        params = {"layers": {k: jnp.ones(s) for k, s in shapes.items()}}
        tx = make(name)
        grads, state = jax.eval_shape(lambda: (params, tx.init(params)))
        needed = extras(name, params)
        jaxpr = jax.make_jaxpr(lambda *xs: tx.update(*xs, **needed))
        return str(jaxpr(grads, state, params)).count(" = ")

    assert size(8) == size(64)


@every_entry
def test_schedule_of_zero_drives_the_first_update(name):
    if not get(name).takes("learning_rate"):
        pytest.skip("it takes no rate")
    tx = make(name, lambda count: jnp.where(count == 0, 0.0, 1e-2))
    params = {"wide": {"kernel": zoo()["wide"]["kernel"]}}
    grads = jax.tree.map(jnp.cos, params)
    update = jax.jit(tx.update)
    state = tx.init(params)
    first, state = update(grads, state, params, **extras(name, grads))
    second, state = update(grads, state, params, **extras(name, grads))
    third, _ = update(grads, state, params, **extras(name, grads))
    assert not np.any(first["wide"]["kernel"])
    # SOAP's first call only makes its bases, and moves nothing whatever the rate.
    assert np.any(second["wide"]["kernel"]) and np.any(third["wide"]["kernel"])


@every_variant
def test_checkpoint_gives_the_state_back_to_the_bit(name, tmp_path):
    tx, update = jitted(name)
    params = zoo()
    _, state = update(zoo(seed=1), tx.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            state,
        )
        restored = checkpointer.restore(tmp_path / "state", abstract)
    chex.assert_trees_all_equal(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@every_variant
def test_lowers_for_every_platform(name):
    """On a CPU without a batch of factorizations, which may wait for each other."""
    tx, _ = jitted(name)
    params = zoo()
    state = jax.eval_shape(tx.init, params)
    traced = jax.jit(lambda g, s, p: tx.update(g, s, p, **extras(name, g))).trace(
        params, state, params
    )
    for platform in ("tpu", "cuda"):
        traced.lower(lowering_platforms=(platform,))
    program = traced.lower(lowering_platforms=("cpu",)).as_text()
    for line in program.splitlines():
        if re.search(r"@(lapack|blas)_\w+", line) and "gesdd" not in line:
            assert not re.search(r"tensor<\d+x\d+x\d+x", line), line


@every_entry
def test_eight_devices_agree_with_one(name):
    """Replicated under jit and under pmap, on eight devices."""
    tx, update = jitted(name)
    params, grads = zoo(), zoo(seed=1)
    state = tx.init(params)
    expected, _ = update(grads, state, params)
    everywhere = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P())
    placed = jax.device_put((grads, state, params), everywhere)
    result, _ = update(*placed)
    assert_close(result, expected)
    copies = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (8, *x.shape)), (grads, state, params)
    )
    mapped, _ = jax.pmap(lambda g, s, p: tx.update(g, s, p, **extras(name, g)))(*copies)
    for device in (0, 7):
        assert_close(jax.tree.map(lambda x, d=device: x[d], mapped), expected)


@every_entry
def test_works_inside_optax_wrappers(name):
    """All in one program, over one matrix, one vector and one embedding."""
    parts = ("embed", "norm", "square")
    params = {k: zoo()[k] for k in parts}
    # Each call has its own: of equal ones SOAP divides rounding by rounding.
    calls = [{k: zoo(seed=i)[k] for k in parts} for i in range(1, 5)]
    grads = jax.tree.map(lambda *g: jnp.stack(g), *calls)

    fed = optax.GradientTransformationExtraArgs(
        make(name).init,
        lambda g, s, p=None, **_: make(name).update(g, s, p, **extras(name, g)),
    )
    wrapped = {
        "plain": make(name),
        "chain": optax.chain(optax.clip_by_global_norm(1e6), make(name)),
        "partition": optax.partition(
            {"a": make(name), "b": optax.set_to_zero()},
            {"embed": "a", "norm": "b", "square": "a"},
            mask_compatible_extra_args=True,
        ),
        "masked": optax.masked(
            make(name),
            {"embed": True, "norm": False, "square": True},
            mask_compatible_extra_args=True,
        ),
        "inject": optax.inject_hyperparams(
            lambda learning_rate: make(name, learning_rate),
            hyperparam_dtype=jnp.float32,
        )(learning_rate=1e-2),
        "finite": optax.apply_if_finite(make(name), 3),
        "multi": optax.MultiSteps(make(name), 2),
        "lookahead": optax.lookahead(fed, 2, 0.5),
        "schedule_free": optax.contrib.schedule_free(fed, 1e-2, b1=0.9),
    }

    @jax.jit
    def four_calls(grads, params):
        """The updates of every call, at the same parameters."""
        results = {}
        for key, tx in wrapped.items():
            p = params
            if key == "lookahead":
                p = optax.LookaheadParams.init_synced(params)
            inputs = grads
            if key == "multi":
                inputs = jax.tree.map(lambda g: jnp.repeat(g[:2], 2, 0), grads)

            def call(state, g, tx=tx, p=p, key=key):
                # optax's lookahead takes no extra arguments; `fed` has its own.
                more = {} if key == "lookahead" else extras(name, g)
                updates, state = tx.update(g, state, p, **more)
                return state, updates

            results[key] = jax.lax.scan(call, tx.init(p), inputs)[1]
        return results

    results = four_calls(grads, params)
    assert_finite(results)
    plain = results.pop("plain")
    # SOAP's first call only makes its bases.
    assert all(np.any(u[1]) for u in jax.tree.leaves(plain))
    for key in ("chain", "inject", "finite"):
        assert_close(results[key], plain)
    for key, frozen in (("partition", 0.0), ("masked", grads["norm"]["scale"])):
        inactive = results[key].pop("norm")["scale"]
        np.testing.assert_array_equal(inactive, np.broadcast_to(frozen, (4, 6)))
        assert_close(results[key], {k: plain[k] for k in ("embed", "square")})

    def at(i, tree):
        return jax.tree.map(lambda u: u[i], tree)

    multi = results["multi"]
    # Every other call moves, by what the method makes of the two gradients' mean.
    assert not any(np.any(u[0::2]) for u in jax.tree.leaves(multi))
    assert_close(at(slice(1, None, 2), multi), at(slice(0, 2), plain))
    # At the second call lookahead halves the way, and both copies meet there.
    fast, slow = results["lookahead"]
    assert_close(at(0, fast), at(0, plain))
    assert not any(np.any(u[0]) for u in jax.tree.leaves(slow))
    half = jax.tree.map(lambda u: u[1] / 2, plain)
    assert_close(at(1, fast), half)
    assert_close(at(1, slow), half)
    # Two calls of its average, x and z by hand, with y where it was.
    averaged = jax.tree.map(
        lambda u: jnp.stack([u[0], 0.5 * u[0] + 0.55 * u[1]]), plain
    )
    assert_close(at(slice(0, 2), results["schedule_free"]), averaged)


def _bad_arguments():
    """One value out of range for each argument that has a range."""
    bad = {
        **dict.fromkeys(("b1", "b2", "momentum", "adam_b1", "adam_b2"), 1.0),
        **dict.fromkeys(("weight_decay", "eps", "adam_eps", "learning_rate"), -1.0),
        **dict.fromkeys(("rank", "ns_steps"), 0),
        "gamma": float("nan"),
    }
    for name in names():
        for argument in inspect.signature(get(name).factory).parameters:
            if argument in bad:
                yield pytest.param(name, argument, bad[argument])


@pytest.mark.parametrize(("name", "argument", "value"), _bad_arguments())
def test_an_argument_out_of_range_is_named(name, argument, value):
    kwargs = {"learning_rate": 1e-2, argument: value}
    with pytest.raises(ValueError, match=argument):
        get(name).factory(**kwargs)


def test_the_zoo_is_what_the_suite_says():
    assert len(jax.tree.leaves(SHAPES, is_leaf=lambda x: isinstance(x, tuple))) == 13
