"""Sharded optimizers: what moves between devices, and that the numbers agree."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optlab
from experiments.compiled import Program
from experiments.flops import count_flops
from optlab import sharding
from optlab.registry import get, names
from tests.conformance import SMALLER, extras

# Every kind of leaf; stacks that eight devices divide, that they do not, and none.
SHAPES = {
    "embed": (16, 8),
    "layers": {"bias": (8, 16), "up": {"kernel": (8, 8, 16)}},
    "odd": {"kernel": (3, 5, 7)},
    "query": {"kernel": (8, 8)},
}
ROLES = optlab.default_roles(stacked=("^layers/", "^odd/"))

# Name -> mesh, axes of the matrix work, rules.
LAYOUTS = {
    "fsdp": ({"data": 8}, ("data",), sharding.fsdp_rules),
    "tensor_parallel": ({"model": 8}, ("model",), sharding.tensor_parallel_rules),
    "both": (
        {"data": 4, "model": 2},
        ("data", "model"),
        lambda mesh: sharding.tensor_parallel_rules(mesh, "model", "data"),
    ),
}

every_entry = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xdist_group(f"on {n}")) for n in names()]
)


def arrays(shapes, dtype=jnp.float32, seed=0):
    """Random arrays of those shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make(name, learning_rate=1e-2, roles=ROLES, **kwargs):
    """The entry, with those arguments that it has."""
    factory = get(name).factory
    # In float32 SOAP divides rounding by rounding in null spaces, but for its eps.
    own = SMALLER.get(name, {}) | ({"eps": 1e-3} if name == "soap" else {})
    offered = {**own, "roles": roles, **kwargs}
    accepted = inspect.signature(factory).parameters
    return factory(learning_rate, **{k: v for k, v in offered.items() if k in accepted})


def stepper(name, tx):
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, **extras(name, grads))
        return optax.apply_updates(params, updates), state

    return step


def follow(step, params, state, gradients):
    for grads in gradients:
        params, state = step(grads, state, params)
    return jax.tree.map(np.asarray, params), state


def place(mesh, rules, tree):
    return jax.device_put(
        tree, sharding.to_shardings(mesh, sharding.param_specs(tree, rules))
    )


def laid_out(layout):
    axes, over, rules = LAYOUTS[layout]
    mesh = sharding.make_mesh(axes)
    return mesh, sharding.over_mesh(mesh, over), rules(mesh)


def pinned(name, tx, params, distribute):
    """The compiled step with its layouts pinned on both sides, and the first state."""
    state = sharding.init_state(tx, params, distribute=distribute)
    layouts = jax.tree.map(lambda x: x.sharding, (params, state))
    step = jax.jit(stepper(name, tx), donate_argnums=(1, 2), out_shardings=layouts)
    return step, state


def fresh(tree):
    """Copies, for a step that takes its arguments' memory."""
    return jax.tree.map(jnp.copy, tree)


def close(tolerance):
    def compare(tree, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
            *(tree, expected),
        )

    return compare


# The numbers agree.


@every_entry
def test_one_device_equals_eight_in_every_way(name, x64):
    del x64
    params = arrays(SHAPES, jnp.float64)
    gradients = [arrays(SHAPES, jnp.float64, seed) for seed in (1, 2, 3)]
    tx = make(name)
    expected, _ = follow(jax.jit(stepper(name, tx)), params, tx.init(params), gradients)
    same = close(1e-10)

    for layout in LAYOUTS:
        mesh, distribute, rules = laid_out(layout)
        tx = make(name, distribute=distribute)
        placed = place(mesh, rules, params)
        step, state = pinned(name, tx, placed, distribute)
        spread = [place(mesh, rules, g) for g in gradients]
        result, _ = follow(step, fresh(placed), state, spread)
        same(result, expected)

    tx = make(name, distribute=sharding.over_axis("data"))
    step = jax.pmap(stepper(name, tx), "data")

    def copies(tree):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), tree)

    result, _ = follow(
        step, copies(params), copies(tx.init(params)), map(copies, gradients)
    )
    for device in (0, 7):
        same(jax.tree.map(lambda x, d=device: x[d], result), expected)

    step = jax.shard_map(
        stepper(name, tx),
        mesh=sharding.make_mesh({"data": 8}),
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )
    result, _ = follow(jax.jit(step), params, tx.init(params), gradients)
    same(result, expected)


@every_entry
def test_wrapped_and_sharded_in_float32(name):
    """Inside MultiSteps, chain, partition and inject_hyperparams, FSDP on eight."""

    def wrapped(distribute=None):
        def inner(learning_rate):
            return make(name, learning_rate, distribute=distribute)

        labels = dict.fromkeys(SHAPES, "method") | {"embed": "sgd"}
        parts = {
            "method": optax.inject_hyperparams(inner, hyperparam_dtype=jnp.float32)(
                learning_rate=1e-2
            ),
            "sgd": optax.sgd(1e-2, momentum=0.9),
        }
        return optax.MultiSteps(
            optax.chain(
                optax.clip_by_global_norm(50.0),
                optax.partition(parts, labels, mask_compatible_extra_args=True),
            ),
            every_k_schedule=2,
        )

    params = arrays(SHAPES)
    gradients = [arrays(SHAPES, seed=seed) for seed in (1, 2, 3, 4)]
    tx = wrapped()
    expected, _ = follow(jax.jit(stepper(name, tx)), params, tx.init(params), gradients)
    mesh, distribute, rules = laid_out("fsdp")
    tx = wrapped(distribute)
    placed = place(mesh, rules, params)
    step, state = pinned(name, tx, placed, distribute)
    before = jax.tree.map(lambda x: x.sharding, state)
    spread = [place(mesh, rules, g) for g in gradients]
    result, state = follow(step, fresh(placed), state, spread)
    close(2e-5)(result, expected)
    assert jax.tree.map(lambda x: x.sharding, state) == before
    assert step._cache_size() == 1
    # An eighth of every state leaf that belongs to a parameter which is cut up.
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        local = leaf.addressable_shards[0].data.size
        owned = "layers" in str(path) and leaf.ndim > 2
        assert local == leaf.size // 8 if owned else local <= leaf.size, path


# What moves between devices.


STACKED = {
    "layers": {
        **{k: (8, 64, 64) for k in ("query", "key", "value", "out")},
        "gate": (8, 64, 128),
        "up": (8, 64, 128),
        "down": (8, 128, 64),
    }
}
UNEVEN = jax.tree.map(
    lambda s: (6, *s[1:]), STACKED, is_leaf=lambda x: isinstance(x, tuple)
)
SEPARATE = {
    f"layer{i}": {"query": (64, 64), "up": (64, 128), "down": (128, 64)}
    for i in range(3)
}
BUCKETS = 3  # 64x64, 64x128, 128x64
LARGE = 4096


def large(collectives):
    """Those over 4096 elements, on one device or all together."""
    return [c for c in collectives if c.elements > LARGE]


def shapes_of(tree):
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def compiled_over_mesh(name, tree, mesh, axes, rules, **kwargs):
    params = shapes_of(tree)
    distribute = sharding.over_mesh(mesh, axes)
    roles = optlab.default_roles(("^layers/",))
    tx = make(name, roles=roles, distribute=distribute, **kwargs)
    specs = sharding.param_specs(params, rules)
    state = sharding.state_specs(tx, params, specs, distribute=distribute)
    own, kept = (sharding.to_shardings(mesh, s) for s in (specs, state))
    step = jax.jit(
        tx.update,
        in_shardings=(own, kept, own),
        out_shardings=(own, kept),
        donate_argnums=1,
    )
    shapes = (params, jax.eval_shape(tx.init, params), params)
    return Program(step.lower(*shapes).compile().as_text()).collectives()


@pytest.mark.parametrize(
    ("name", "tree", "most"),
    [
        ("root", STACKED, 6),
        ("root", UNEVEN, 6),
        # Three of 64x64, padded to eight, are 4096 elements a device and no more.
        ("root", SEPARATE, 4),
        ("lanton", STACKED, 9),
        ("lanton", UNEVEN, 9),
        ("lanton", SEPARATE, 6),
        ("cosmos", STACKED, 6),
        ("cosmos", UNEVEN, 6),
        ("soap", STACKED, 6),
        ("soap", UNEVEN, 6),
    ],
)
def test_two_or_three_large_collectives_a_bucket_under_jit(name, tree, most):
    mesh = sharding.make_mesh({"data": 8})
    rules = ((".*", lambda shape: P(*(None,) * (len(shape) - 2), "data", None)),)
    found = compiled_over_mesh(name, tree, mesh, "data", rules)
    assert not [c for c in found if c.in_loop]
    assert len(large(found)) == most <= 3 * BUCKETS
    assert {c.kind for c in large(found)} == {"all-to-all"}
    # What else there is are numbers, one a layer.
    small = [c.elements for c in found if c.kind != "all-to-all"]
    assert sum(small) < 100


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("root", "pmap"),
        ("lanton", "pmap"),
        ("cosmos", "pmap"),
        ("root", "shard_map"),
        ("lanton", "shard_map"),
        ("soap", "shard_map"),
    ],
)
def test_one_gather_a_result_on_a_named_axis(name, way):
    params = shapes_of(STACKED)
    roles = optlab.default_roles(("^layers/",))
    tx = make(name, roles=roles, distribute=sharding.over_axis("data"))
    state = jax.eval_shape(tx.init, params)
    if way == "pmap":
        step = jax.pmap(tx.update, "data")
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype),
            (params, state, params),
        )
    else:
        mesh = sharding.make_mesh({"data": 8})
        step = jax.jit(
            jax.shard_map(
                tx.update, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
            )
        )
        shapes = (params, state, params)
    found = Program(step.lower(*shapes).compile().as_text()).collectives()
    assert found and not [c for c in found if c.in_loop]
    factors = {"cosmos": 3, "soap": 5}.get(name, 0)
    assert len(large(found)) <= BUCKETS * (1 + factors)
    if not factors:
        assert len(large(found)) <= 3 * BUCKETS
    assert {c.kind for c in found} == {"all-gather"}


@pytest.mark.parametrize("name", ["root", "lanton", "cosmos", "soap", "scion"])
def test_matrix_work_is_divided_by_the_devices(name):
    params = shapes_of(STACKED)
    roles = optlab.default_roles(("^layers/",))
    mesh = sharding.make_mesh({"data": 8})

    def work(distribute, wrap=lambda f: f):
        tx = make(name, roles=roles, distribute=distribute)
        state = jax.eval_shape(tx.init, params)
        flops = count_flops(wrap(tx.update), params, state, params)
        return flops.matmul + flops.factorization

    one = work(None)
    named = work(
        sharding.over_axis("data"),
        lambda f: jax.shard_map(
            f, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
        ),
    )
    # Counted over all devices: 1.15 of one device's is 1.15/8 on each.
    for eight in (work(sharding.over_mesh(mesh, "data")), named):
        assert one <= eight <= 1.15 * one


def test_matrix_work_stays_within_a_slice():
    mesh = sharding.make_mesh({"slice": 2, "data": 4})
    rules = sharding.fsdp_rules(mesh)
    found = compiled_over_mesh("root", STACKED, mesh, "data", rules)
    assert len(large(found)) == 2 * BUCKETS
    slices = [{d.id for d in row} for row in mesh.devices]
    for collective in found:
        assert collective.groups
        for group in collective.groups:
            assert any(set(group) <= one for one in slices)


def test_tensor_parallel_state_never_gathers_in_a_loop():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    rules = sharding.tensor_parallel_rules(mesh, "model", "data")
    found = compiled_over_mesh("root", STACKED, mesh, ("data", "model"), rules)
    assert not [c for c in found if c.in_loop]


def test_collectives_in_loops_are_found_and_counted():
    mesh = sharding.make_mesh({"data": 4, "model": 2})

    def looped(x):
        def body(x, _):
            return jax.lax.psum(jnp.sin(x @ x), "model") / 2, None

        return jax.lax.scan(body, x, None, length=7)[0]

    step = jax.shard_map(looped, mesh=mesh, in_specs=P(), out_specs=P())
    text = jax.jit(step).lower(jnp.ones((8, 8))).compile().as_text()
    (found,) = Program(text).collectives()
    assert found.kind == "all-reduce" and found.in_loop and found.trips == 7
    assert found.elements == 64 and found.bytes == 256
    assert found.groups == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert Program(text).matmul_flops() == 7 * 2 * 8**3


def test_optax_muon_under_the_same_layout_moves_far_more_often():
    mesh = sharding.make_mesh({"data": 8})
    rules = sharding.fsdp_rules(mesh)
    found = compiled_over_mesh("muon", STACKED, mesh, "data", rules)
    assert len(large(found)) > 60


# State further apart than the parameters, and in a precision of its own.


@pytest.mark.parametrize("name", ["adamw", "cosmos"])
def test_zero1_state_of_bfloat16_parameters(name):
    mesh, distribute, rules = laid_out("fsdp")
    params = arrays(SHAPES, jnp.bfloat16)
    grads = arrays(SHAPES, jnp.bfloat16, seed=1)
    tx = make(name, distribute=distribute)
    further = sharding.param_specs(params, rules)
    layout = sharding.to_shardings(
        mesh, sharding.state_specs(tx, params, further, distribute=distribute)
    )
    everywhere = sharding.to_shardings(mesh, jax.tree.map(lambda _: P(), params))
    placed = jax.device_put(params, everywhere)
    state = jax.jit(tx.init, out_shardings=layout)(placed)
    step = jax.jit(stepper(name, tx), out_shardings=(everywhere, layout))
    result, state = follow(step, placed, state, [grads] * 2)
    tx = make(name)
    one = jax.jit(stepper(name, tx))
    expected, _ = follow(one, params, tx.init(params), [grads] * 2)
    result, expected = (
        jax.tree.map(lambda x: x.astype(np.float32), tree)
        for tree in (result, expected)
    )
    # One bit of bfloat16.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-7, atol=1e-4),
        *(result, expected),
    )
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    local = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
    )
    assert local < 0.3 * whole
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype != jnp.bfloat16


# Meshes, rules and their errors.


def test_a_mesh_takes_the_remaining_devices():
    mesh = sharding.make_mesh({"data": -1, "model": 2})
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "axes", [{"data": 3}, {"data": -1, "model": 3}, {"data": -1, "model": -1}, {"a": 0}]
)
def test_a_mesh_that_does_not_fit_is_an_error(axes):
    with pytest.raises(ValueError, match="8 devices"):
        sharding.make_mesh(axes)


def test_slices_are_as_far_apart_as_they_can_be():
    mesh = sharding.make_mesh({"data": 4, "slice": 2})
    ids = np.vectorize(lambda d: d.id)(mesh.devices)
    np.testing.assert_array_equal(ids, [[0, 4], [1, 5], [2, 6], [3, 7]])


def test_a_parameter_without_a_rule_is_named():
    params = shapes_of(SHAPES)
    rules = (("layers/", P(None, "data")), ("quary", P()))
    with pytest.raises(ValueError, match="none matches 'embed'"):
        sharding.param_specs(params, rules)
    with pytest.raises(ValueError, match="'query/kernel'; the nearest is quary"):
        sharding.param_specs({"query": params["query"]}, rules)


def test_a_layout_with_too_many_axes_is_named():
    rules = ((".*", P(None, None, "data")),)
    with pytest.raises(ValueError, match="'embed' of shape"):
        sharding.param_specs(shapes_of(SHAPES), rules)


def test_the_first_rule_decides():
    params = shapes_of(SHAPES)
    rules = (("up", P(None, None, "data")), ("layers", P("data")), (".*", P()))
    specs = sharding.param_specs(params, rules)
    assert specs["layers"]["up"]["kernel"] == P(None, None, "data")
    assert specs["layers"]["down"]["kernel"] == P("data")
    assert specs["embed"] == P()


def test_ready_rules():
    params = shapes_of(SHAPES)
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
    assert specs["layers"]["up"]["kernel"] == P(None, "data", None)
    assert specs["odd"]["kernel"] == P(None, None, None)
    rules = sharding.tensor_parallel_rules(mesh, "model", "data")
    specs = sharding.param_specs(params, rules)
    assert specs["layers"]["up"]["kernel"] == P(None, "data", "model")
    # Neither axis of the mesh divides 3, 5 or 7.
    assert specs["odd"]["kernel"] == P(None, None, None)
    assert specs["embed"] == P("model", "data")


def test_an_unknown_axis_is_named():
    mesh = sharding.make_mesh({"data": 8})
    for make_one in (sharding.over_mesh, sharding.fsdp_rules):
        with pytest.raises(ValueError, match="no axis 'model'"):
            make_one(mesh, "model")


def test_an_explicit_mesh_is_refused():
    """Explicit axes are jax's default; products of sharded matrices raise on them."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"not Auto; optlab\.sharding.make_mesh"):
        sharding.over_mesh(mesh, "data")
