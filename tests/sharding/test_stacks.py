"""Factors that a mesh does not divide: kept by bucket, padded, cut again elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from optlab import sharding
from optlab.state import Stacks, is_stacks, state_leaves
from tests.helpers.sharded import (
    arrays,
    close,
    follow,
    fresh,
    make,
    place,
    shapes_of,
    stepper,
)
from tests.sharding.test_collectives import compiled_step

SHAPES = {
    "blocks": {"up": (4, 8, 16)},
    "layers": {"query": (3, 8, 8), "key": (3, 8, 8)},
    "alone": (8, 8),
    "bias": (8,),
}
ROLES = optlab.default_roles(stacked=("^layers/", "^blocks/"))
SOME = ("cosmos", "soap")


def mesh_of(devices):
    return sharding.make_mesh({"data": devices}, jax.devices()[:devices])


def on(name, devices):
    """The optimizer for that many devices, and its first state there."""
    if devices == 1:
        return make(name, roles=ROLES), None
    mesh = mesh_of(devices)
    return make(name, roles=ROLES, distribute=sharding.over_mesh(mesh, "data")), mesh


def stacks(state):
    return [x for x in jax.tree.leaves(state, is_leaf=is_stacks) if is_stacks(x)]


@pytest.mark.parametrize("name", SOME)
def test_what_the_devices_do_not_divide_is_in_padded_buckets(name):
    params = shapes_of(SHAPES)
    for devices in (2, 4, 8):
        tx, mesh = on(name, devices)
        state = jax.eval_shape(tx.init, params)
        found = stacks(state)
        factors = {"cosmos": 3, "soap": 5}[name]
        assert len(found) == factors
        for one in found:
            sizes = {x.members[0][-1].key: x.slices for x in one.plan}
            uneven = {"key": 6, "alone": 1} | ({"up": 4} if 4 % devices else {})
            # Query and key share a bucket, in the order of the tree.
            assert sizes == {k: -(-n // devices) * devices for k, n in uneven.items()}
            assert (one.leaves["blocks"]["up"] is None) == ("up" in uneven)
        specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
        layouts = sharding.state_specs(tx, params, specs)
        assert jax.tree.structure(layouts) == jax.tree.structure(state)
        for one in stacks(layouts):
            assert set(one.buckets) == {P(("data",))}
        table = optlab.describe(params, tx)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        kept = sum(row.state_bytes for row in table)
        counts = sum(x.size * 4 for x in jax.tree.leaves(state) if not x.ndim)
        assert kept == size - counts
        assert {r.optimizer for r in table if r.path != "bias"} == {name}


@pytest.mark.parametrize("name", SOME)
def test_a_state_goes_from_eight_devices_to_three_and_to_one(name, x64):
    """The same values to the bit, and the same steps but for rounding."""
    del x64
    params = arrays(SHAPES, jnp.float64)
    gradients = [arrays(SHAPES, jnp.float64, seed) for seed in (1, 2, 3)]
    one, _ = on(name, 1)
    start = (params, one.init(params))
    expected, _ = follow(jax.jit(stepper(name, one)), *start, gradients)
    values, state = params, None
    for devices, grads in zip((8, 3, 1), gradients, strict=True):
        tx, mesh = on(name, devices)
        values = jax.device_get(values)
        layouts = NamedSharding(mesh_of(1), P())
        if mesh is not None:
            values = place(mesh, sharding.fsdp_rules(mesh), values)
            grads = place(mesh, sharding.fsdp_rules(mesh), grads)  # noqa: PLW2901
            layouts = sharding.state_shardings(tx, values)
        if state is None:
            state = sharding.init_state(tx, values)
        else:
            wanted = jax.eval_shape(tx.init, values)
            before = jax.device_get(state)
            state = jax.jit(
                lambda x, like=wanted: sharding.restack(x, like), out_shardings=layouts
            )(before)
            assert jax.tree.structure(state) == jax.tree.structure(wanted)
            plain = jax.eval_shape(one.init, params)
            jax.tree.map(
                np.testing.assert_array_equal,
                *(sharding.restack(jax.device_get(x), plain) for x in (before, state)),
            )
        values, state = jax.jit(stepper(name, tx))(grads, state, values)
    close(1e-10)(jax.device_get(values), expected)


@pytest.mark.parametrize("way", ["mesh", "axis"])
def test_members_without_a_gradient_keep_their_factors(way):
    params = arrays(SHAPES)
    grads = arrays(SHAPES, seed=1)
    grads["layers"]["key"] = grads["alone"] = None
    mesh = mesh_of(8)
    spread = {
        "mesh": sharding.over_mesh(mesh, "data"),
        "axis": sharding.over_axis("data", 8),
    }
    one = make("cosmos", roles=ROLES)
    tx = make("cosmos", roles=ROLES, distribute=spread[way])
    whole = jax.tree.map(lambda _: P(), params)
    kept = sharding.state_specs(tx, params, whole)
    step = tx.update
    if way == "axis":
        step = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), kept, P()),
            out_specs=(P(), kept),
            check_vma=False,
        )
    both, alone = jax.jit(tx.init)(params), one.init(params)
    for given in (arrays(SHAPES, seed=2), grads):
        expected, alone = jax.jit(one.update)(given, alone, params)
        updates, both = jax.jit(step)(given, both, params)
        close(1e-5)(updates, expected)
    close(1e-5)(sharding.restack(both, alone), alone)


def test_wrapped_in_what_optax_has():
    params = arrays(SHAPES)
    gradients = [arrays(SHAPES, seed=seed) for seed in (1, 2, 3, 4)]

    def wrapped(distribute=None):
        def inner(learning_rate):
            return make("cosmos", learning_rate, ROLES, distribute=distribute)

        injected = optax.inject_hyperparams(inner, hyperparam_dtype=jnp.float32)
        return optax.apply_if_finite(
            optax.MultiSteps(optax.chain(injected(1e-2)), every_k_schedule=2), 3
        )

    mesh = mesh_of(8)
    rules = sharding.fsdp_rules(mesh)
    tx, one = wrapped(sharding.over_mesh(mesh, "data")), wrapped()
    placed = place(mesh, rules, params)
    state = sharding.init_state(tx, placed)
    step = jax.jit(
        stepper("cosmos", tx),
        out_shardings=jax.tree.map(lambda x: x.sharding, (placed, state)),
    )
    spread = [place(mesh, rules, g) for g in gradients]
    result, state = follow(step, fresh(placed), state, spread)
    assert step._cache_size() == 1
    expected, _ = follow(
        jax.jit(stepper("cosmos", one)), params, one.init(params), gradients
    )
    close(1e-5)(result, expected)
    for leaf in state_leaves(state):
        if leaf.bucket is not None:
            local = leaf.value.addressable_shards[0].data
            assert 8 * local.size == leaf.value.size


def test_a_state_by_leaf_is_taken_and_a_wrong_one_is_named():
    params = arrays(SHAPES)
    tx = make("soap", roles=ROLES, distribute=sharding.over_mesh(mesh_of(8), "data"))
    one = make("soap", roles=ROLES)
    found, state = jax.jit(tx.update)(params, one.init(params), params)
    assert not stacks(state)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    other = {**SHAPES, "layers": {"query": (3, 8, 8), "key": (3, 8, 4)}}
    state = jax.eval_shape(tx.init, shapes_of(other))
    with pytest.raises(ValueError, match="state: 'layers/key' of shape"):
        jax.eval_shape(tx.update, params, state, params)


@pytest.mark.parametrize("name", SOME)
def test_only_matrices_move(name):
    """Two exchanges a bucket, of what is worked on and of the directions."""
    shapes = {f"layer{i}": {"query": (64, 64), "up": (64, 128)} for i in range(3)}
    mesh = mesh_of(8)
    tx = make(name, distribute=sharding.over_mesh(mesh, "data"))
    program = compiled_step(tx, shapes, mesh, sharding.fsdp_rules(mesh))
    found = program.collectives()
    assert len([c for c in found if c.kind == "all-to-all"]) == 4
    # One padded matrix a device: gradient and momentum in, the direction out.
    moved = 3 * (64 * 64 + 64 * 128)
    assert sum(c.elements for c in found) <= 1.01 * moved
    assert not [c for c in found if c.in_loop]


def test_a_bucket_joins_and_splits():
    leaves = {k: jnp.arange(12.0).reshape(3, 2, 2) + i for i, k in enumerate("ab")}
    state = jax.eval_shape(
        make("cosmos", roles=optlab.default_roles(stacked=(".",)),
             distribute=sharding.over_mesh(mesh_of(4), "data")).init,
        leaves,
    )  # fmt: skip
    plan = stacks(state)[0].plan
    kept = Stacks.of(leaves, plan)
    assert kept.buckets[0].shape == (8, 2, 2) and not kept.buckets[0][6:].any()
    np.testing.assert_array_equal(kept.buckets[0][1], leaves["b"][0])
    jax.tree.map(np.testing.assert_array_equal, kept.by_leaf(), leaves)
