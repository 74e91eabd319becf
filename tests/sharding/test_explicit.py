"""Meshes with Explicit axes, jax's default, serve as those with Auto ones do."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab
from experiments.hlo import Program
from optlab import sharding
from tests.helpers.sharded import (
    APART,
    OTHERS,
    ROLES,
    SHAPES,
    arrays,
    close,
    make,
    place,
    stepper,
    together,
)

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def mesh_of(kind, sizes=(8,), axes=("data",)):
    return jax.make_mesh(sizes, axes, axis_types=(KINDS[kind],) * len(axes))


def wrapped(tx):
    return optax.apply_if_finite(
        optax.MultiSteps(optax.chain(optax.clip_by_global_norm(50.0), tx), 2), 3
    )


def everything(kind):
    """Every entry and some wrappers, by the name of the case and of the entry.

    Those without matrix work share a program.
    """
    spread = sharding.over_mesh(mesh_of(kind), "data")
    cases = {name: {name: make(name, distribute=spread)} for name in APART}
    cases["others"] = {name: make(name) for name in OTHERS}
    outliers = optlab.clip_outliers(0.9, roles=ROLES, distribute=spread)
    cases["outliers"] = {"adamw": optax.chain(outliers, make("adamw"))}
    inner = make("muon", distribute=spread)
    noise = optlab.noise_adaptive(inner, roles=ROLES, distribute=spread)
    cases["noise"] = {"muon": noise}
    cases["wrapped"] = {"root": wrapped(make("root", distribute=spread))}
    return cases


CASES = list(everything("auto"))


def compiled(case, kind):
    """The step on that mesh: what moves in it, and what two steps of it give."""
    txs, mesh = everything(kind)[case], mesh_of(kind)
    rules = sharding.fsdp_rules(mesh)
    params = place(mesh, rules, arrays(SHAPES))
    state = {name: sharding.init_state(tx, params) for name, tx in txs.items()}
    params = dict.fromkeys(txs, params)
    layouts = jax.tree.map(lambda x: x.sharding, (params, state))
    step = jax.jit(together(txs), out_shardings=layouts)
    grads = [place(mesh, rules, arrays(SHAPES, seed=seed)) for seed in (1, 2)]
    program = step.lower(grads[0], state, params).compile()
    for each in grads:
        params, state = program(each, state, params)
    return Program(program.as_text()).collectives(), jax.device_get(params), state


@pytest.mark.parametrize("name", CASES)
def test_the_same_values_and_collectives_as_on_auto_axes(name):
    (moved, values, auto), (also, found, state) = (compiled(name, k) for k in KINDS)
    close(1e-6)(found, values)
    before, after = (
        Counter((c.kind, c.elements, c.trips) for c in each) for each in (moved, also)
    )
    # A number that is reduced twice on Auto axes may be reduced once here.
    assert after <= before
    assert {k: n for k, n in after.items() if k[1] > 1} == {
        k: n for k, n in before.items() if k[1] > 1
    }
    for a, b in zip(*map(jax.tree.leaves, (auto, state)), strict=True):
        assert b.sharding.mesh.axis_types == (AxisType.Explicit,)
        assert a.sharding.spec == b.sharding.spec and a.dtype == b.dtype


@pytest.mark.parametrize("name", [*APART, "adamw", "spam"])
def test_layouts_come_back_as_they_came_without_distribute(name):
    mesh = mesh_of("explicit", (4, 2), ("data", "model"))
    one = make(name)

    def updated(spec):
        layout = NamedSharding(mesh, spec)
        params = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32, sharding=layout),
            {"embed": (8, 8), "layers": {"up": (8, 8, 16)}},
            is_leaf=lambda x: isinstance(x, tuple),
        )
        state = jax.eval_shape(one.init, params)
        updates, _ = jax.eval_shape(stepper(name, one), params, state, params)
        return jax.tree.map(jax.typeof, (updates, params))

    for spec in (P(), P("data"), P("model", "data")):
        found, expected = updated(spec)
        assert found == expected


def test_inside_a_mesh_in_force_and_without_jit():
    mesh = mesh_of("explicit")
    rules = sharding.fsdp_rules(mesh)
    values, grads = arrays(SHAPES), arrays(SHAPES, seed=1)
    one = make("cosmos")
    expected, _ = one.update(grads, one.init(values), values)
    params, spread = place(mesh, rules, values), place(mesh, rules, grads)
    tx = make("cosmos", distribute=sharding.over_mesh(mesh, "data"))
    updates, _ = tx.update(spread, sharding.init_state(tx, params), params)
    close(1e-5)(jax.device_get(updates), expected)
    with jax.set_mesh(mesh):
        state = sharding.init_state(tx, params)
        updates, _ = jax.jit(tx.update)(spread, state, params)
    close(1e-5)(jax.device_get(updates), expected)
    # Where it is not said how the work is spread, the compiler spreads it.
    updates, _ = jax.jit(one.update)(spread, one.init(params), params)
    close(1e-5)(jax.device_get(updates), expected)


@pytest.mark.parametrize("size", [None, 8])
def test_on_a_named_axis(size):
    mesh = mesh_of("explicit")
    params, grads = arrays(SHAPES), arrays(SHAPES, seed=1)
    tx = make("cosmos", distribute=sharding.over_axis("data", size))
    kept = sharding.state_specs(tx, params, jax.tree.map(lambda _: P(), params))
    step = jax.shard_map(
        tx.update,
        mesh=mesh,
        in_specs=(P(), kept, P()),
        out_specs=(P(), kept),
        check_vma=False,
    )
    state = jax.device_put(tx.init(params), sharding.to_shardings(mesh, kept))
    everywhere = NamedSharding(mesh, P())
    one = make("cosmos")
    expected, alone = params, one.init(params)
    for _ in range(2):
        given = jax.device_put((grads, params), everywhere)
        found, state = jax.jit(step)(given[0], state, given[1])
        expected, alone = jax.jit(one.update)(grads, alone, params)
    close(1e-5)(jax.device_get(found), expected)


def test_diagnostics_of_explicit_arrays():
    grads = arrays(SHAPES, seed=1)
    tx = make("root")

    def values(grads, params):
        state = tx.init(params)
        updates, new = tx.update(grads, state, params)
        return optlab.diagnostics.layer_diagnostics(
            grads, updates, params, state, new, roles=ROLES
        )

    params = arrays(SHAPES)
    expected = jax.jit(values)(grads, params)
    mesh = mesh_of("explicit")
    rules = sharding.fsdp_rules(mesh)
    found = jax.jit(values)(place(mesh, rules, grads), place(mesh, rules, params))
    jax.tree.map(
        # An error of orthogonality may be nothing but rounding.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(jax.device_get(found), expected),
    )
