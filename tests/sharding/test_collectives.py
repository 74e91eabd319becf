"""What moves between devices in a step, counted in the compiled text."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optlab
from experiments.benchmark import peers
from experiments.flops import count_flops
from experiments.hlo import Program
from optlab import sharding
from tests.helpers.sharded import make, shapes_of

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
ROLES = optlab.default_roles(("^layers/",))


def large(collectives):
    """Those over 4096 elements, on one device or all together."""
    return [c for c in collectives if c.elements > LARGE]


def compiled_over_mesh(name, tree, mesh, axes, rules):
    distribute = sharding.over_mesh(mesh, axes)
    tx = make(name, roles=ROLES, distribute=distribute)
    return compiled_step(tx, tree, mesh, rules, distribute)


def compiled_step(tx, tree, mesh, rules, distribute=None):
    params = shapes_of(tree)
    specs = sharding.param_specs(params, rules)
    state = sharding.state_specs(tx, params, specs)
    own, kept = (sharding.to_shardings(mesh, s) for s in (specs, state))
    step = jax.jit(
        tx.update,
        in_shardings=(own, kept, own),
        out_shardings=(own, kept),
        donate_argnums=1,
    )
    shapes = (params, jax.eval_shape(tx.init, params), params)
    return Program(step.lower(*shapes).compile().as_text())


@functools.cache
def products_of_one_device(name):
    """FLOPs of the products in the compiled step without a mesh."""
    params = shapes_of(STACKED)
    tx = make(name, roles=ROLES)
    shapes = (params, jax.eval_shape(tx.init, params), params)
    text = jax.jit(tx.update).lower(*shapes).compile().as_text()
    return Program(text).matmul_flops()


@pytest.mark.parametrize(
    ("name", "tree", "most"),
    [
        ("muon", STACKED, 6),
        ("muon", UNEVEN, 6),
        ("muon", SEPARATE, 4),
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
    program = compiled_over_mesh(name, tree, mesh, "data", rules)
    found = program.collectives()
    assert not [c for c in found if c.in_loop]
    assert len(large(found)) == most <= 3 * BUCKETS
    assert {c.kind for c in large(found)} == {"all-to-all"}
    # Those of a small bucket, and no other small ones.
    exchanges = [c for c in found if c.kind == "all-to-all"]
    assert len(exchanges) == (3 if name == "lanton" else 2) * BUCKETS
    # What else there is are numbers, one a layer.
    small = [c.elements for c in found if c.kind != "all-to-all"]
    assert sum(small) < 100
    if tree is STACKED:
        one = products_of_one_device(name)
        assert one / 8 <= program.matmul_flops() <= 1.15 * one / 8


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("muon", "pmap"),
        ("root", "pmap"),
        ("lanton", "pmap"),
        ("cosmos", "pmap"),
        ("muon", "shard_map"),
        ("root", "shard_map"),
        ("lanton", "shard_map"),
        ("soap", "shard_map"),
        ("cosmos", "by stack"),
        ("soap", "by stack"),
    ],
)
def test_one_gather_a_bucket_on_a_named_axis(name, way):
    params = shapes_of(STACKED)
    distribute = sharding.over_axis("data", 8 if way == "by stack" else None)
    tx = make(name, roles=ROLES, distribute=distribute)
    state = jax.eval_shape(tx.init, params)
    if way == "pmap":
        step = jax.pmap(tx.update, "data")
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype),
            (params, state, params),
        )
    else:
        mesh = sharding.make_mesh({"data": 8})
        whole = jax.tree.map(lambda _: P(), params)
        kept = sharding.state_specs(tx, params, whole)
        step = jax.jit(
            jax.shard_map(
                tx.update,
                mesh=mesh,
                in_specs=(whole, kept, whole),
                out_specs=(whole, kept),
                check_vma=False,
            )
        )
        shapes = (params, state, params)
    program = Program(step.lower(*shapes).compile().as_text())
    one = products_of_one_device(name)
    assert one / 8 <= program.matmul_flops() <= 1.15 * one / 8
    found = program.collectives()
    assert found and not [c for c in found if c.in_loop]
    assert {c.kind for c in found} == {"all-gather"}
    # LANTON measures its noise in the same norm, in other buckets.
    assert len(large(found)) <= BUCKETS * (2 if name == "lanton" else 1)
    if way == "by stack":
        # The updates, and nothing of the factors.
        sizes = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert sum(c.elements for c in found) == sizes


@pytest.mark.parametrize("name", ["muon", "root", "lanton", "cosmos", "soap", "scion"])
def test_matrix_work_is_divided_by_the_devices(name):
    params = shapes_of(STACKED)
    mesh = sharding.make_mesh({"data": 8})

    def work(distribute, wrap=lambda f: f):
        tx = make(name, roles=ROLES, distribute=distribute)
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
    # Counted over all devices: 1.15 of one device's is 1.15/8 on each. Textbook counts
    # of factorizations are rounded, slice by slice or all at once.
    for eight in (work(sharding.over_mesh(mesh, "data")), named):
        assert one * (1 - 1e-6) <= eight <= 1.15 * one


def test_matrix_work_stays_within_a_slice():
    mesh = sharding.make_mesh({"slice": 2, "data": 4})
    rules = sharding.fsdp_rules(mesh)
    found = compiled_over_mesh("root", STACKED, mesh, "data", rules).collectives()
    assert len(large(found)) == 2 * BUCKETS
    slices = [{d.id for d in row} for row in mesh.devices]
    for collective in found:
        assert collective.groups
        for group in collective.groups:
            assert any(set(group) <= one for one in slices)


def test_tensor_parallel_state_never_gathers_in_a_loop():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    rules = sharding.tensor_parallel_rules(mesh, "model", "data")
    program = compiled_over_mesh("root", STACKED, mesh, ("data", "model"), rules)
    assert not [c for c in program.collectives() if c.in_loop]


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
    tx = peers.optax_muon(1e-2, roles=ROLES)
    found = compiled_step(tx, STACKED, mesh, rules).collectives()
    assert len(large(found)) > 60


@pytest.mark.parametrize("name", ["cosmos", "soap"])
def test_init_state_alone_lays_factors_out_where_they_are_worked_on(name):
    """Whatever is around the optimizer: `distribute` was said once, to make it."""
    mesh = sharding.make_mesh({"data": 8})
    shapes = {"a": (8, 64, 64), "b": (8, 64, 64), "c": (8, 64, 128), "d": (8, 128, 64)}
    params = shapes_of({"layers": shapes})
    rules = ((".*", lambda shape: P(None, "data", None)),)
    distribute = sharding.over_mesh(mesh, "data")
    roles = optlab.default_roles(("^layers/",))
    tx = make(name, roles=roles, distribute=distribute)
    wrapped = optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.partition(
                {"all": optax.inject_hyperparams(lambda learning_rate: tx)(1e-2)},
                lambda tree: jax.tree.map(lambda _: "all", tree),
            ),
        ),
        3,
    )
    own = sharding.to_shardings(mesh, sharding.param_specs(params, rules))
    for one in (tx, wrapped):
        found = sharding.state_specs(one, params, sharding.param_specs(params, rules))
        told = sharding.state_specs(
            one, params, sharding.param_specs(params, rules), distribute=distribute
        )
        assert found == told
    placed = jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, own
    )
    kept = sharding.state_shardings(tx, placed)
    step = jax.jit(
        tx.update,
        in_shardings=(own, kept, own),
        out_shardings=(own, kept),
        donate_argnums=1,
    )
    abstract = (params, jax.eval_shape(tx.init, params), params)
    program = Program(step.lower(*abstract).compile().as_text())
    assert len(large(program.collectives())) <= 9
