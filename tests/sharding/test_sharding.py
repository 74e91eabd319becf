"""Sharded optimizers: the numbers agree and state is laid out."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import sharding
from tests.helpers.sharded import (
    APART,
    FEW,
    IN_FLOAT32,
    LAYOUTS,
    OTHERS,
    SEEDS,
    SHAPES,
    arrays,
    close,
    follow,
    fresh,
    laid_out,
    make,
    pinned,
    pinned_together,
    place,
    stepper,
    together,
)

GROUPS = [*([n] for n in APART), OTHERS]


# The numbers agree.


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_one_device_equals_eight_in_every_way(group, x64):
    del x64
    hold_in_every_way(group, ("fsdp", "both"), jnp.float64, close(1e-10))


def test_float32_agrees_in_every_way_to_rounding():
    hold_in_every_way(["root"], LAYOUTS, jnp.float32, close(2e-6))


def hold_in_every_way(group, layouts, dtype, same):
    """Steps on one device against jit over some meshes, pmap and shard_map."""
    params = arrays(SHAPES, dtype)
    gradients = [arrays(SHAPES, dtype, seed) for seed in SEEDS]

    def made(distribute=None):
        return {n: make(n, distribute=distribute) for n in group}

    txs = made()
    many = dict.fromkeys(group, params)
    start = {n: tx.init(params) for n, tx in txs.items()}
    expected, _ = follow(jax.jit(together(txs)), many, start, gradients)

    for layout in layouts:
        mesh, distribute, rules = laid_out(layout)
        placed = place(mesh, rules, params)
        step, state = pinned_together(made(distribute), placed, distribute)
        spread = [place(mesh, rules, g) for g in gradients]
        result, _ = follow(step, fresh(dict.fromkeys(group, placed)), state, spread)
        same(result, expected)

    def copies(tree):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), tree)

    inputs = copies((many, start, gradients))
    step = jax.pmap(together(made(sharding.over_axis("data"))), "data")
    lowered = step.lower(inputs[2][0], inputs[1], inputs[0])
    result, _ = follow(lowered.compile(), *inputs)
    for device in (0, 7):
        same(jax.tree.map(lambda x, d=device: x[d], result), expected)

    # Factors that live by stack slice, each device's own.
    mesh = sharding.make_mesh({"data": 8})
    distribute = sharding.over_axis("data", 8)
    txs = made(distribute)
    whole = jax.tree.map(lambda _: P(), params)
    kept = {
        n: sharding.state_specs(tx, params, whole, distribute=distribute)
        for n, tx in txs.items()
    }
    step = jax.shard_map(
        together(txs),
        mesh=mesh,
        in_specs=(P(), kept, P()),
        out_specs=(P(), kept),
        check_vma=False,
    )
    # Placed as the results will be, or the second step would be compiled again.
    state = {n: tx.init(params) for n, tx in txs.items()}
    state = jax.device_put(state, sharding.to_shardings(mesh, kept))
    spread = jax.device_put((many, gradients), NamedSharding(mesh, P()))
    result, _ = follow(jax.jit(step), spread[0], state, spread[1])
    same(result, expected)


# Factors, numbers a layer, a momentum alone, and what has no matrix work.
@pytest.mark.parametrize(
    "group", [["cosmos"], ["lanton"], ["muon"], OTHERS], ids=" ".join
)
def test_wrapped_and_sharded_in_float32(group):
    """Inside MultiSteps, chain, partition and inject_hyperparams, FSDP on eight."""

    def wrapped(name, distribute=None):
        def inner(learning_rate):
            own = IN_FLOAT32.get(name, {})
            return make(name, learning_rate, distribute=distribute, **own)

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
    txs = {n: wrapped(n) for n in group}
    start = {n: tx.init(params) for n, tx in txs.items()}
    many = dict.fromkeys(group, params)
    expected, _ = follow(jax.jit(together(txs)), many, start, gradients)
    mesh, distribute, rules = laid_out("fsdp")
    txs = {n: wrapped(n, distribute) for n in group}
    placed = place(mesh, rules, params)
    step, state = pinned_together(txs, placed, distribute)
    before = jax.tree.map(lambda x: x.sharding, state)
    spread = [place(mesh, rules, g) for g in gradients]
    result, state = follow(step, fresh(dict.fromkeys(group, placed)), state, spread)
    close(2e-5)(result, expected)
    assert jax.tree.map(lambda x: x.sharding, state) == before
    assert step._cache_size() == 1
    specs = sharding.param_specs(params, rules)
    layouts = {
        n: sharding.to_shardings(
            mesh, sharding.state_specs(tx, params, specs, distribute=distribute)
        )
        for n, tx in txs.items()
    }
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, leaf), layout in zip(found, jax.tree.leaves(layouts), strict=True):
        local = leaf.addressable_shards[0].data.shape
        assert local == layout.shard_shape(leaf.shape), path
        # An eighth of all that belongs to a parameter which is cut up.
        if "layers" in str(path) and leaf.ndim > 2:
            assert 8 * np.prod(local) == leaf.size, path


def test_two_processes_equal_one(tmp_path, x64):
    """Over gloo, two devices each; a step is one program of both processes."""
    del x64
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_ENABLE_X64": "1",
        # A cached program and a compiled one may not send in the same order.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        "--xla_force_host_platform_device_count=2",
    }
    file = tmp_path / "result.npz"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.helpers.two_processes"),
                *(address, str(rank), str(file), *map(",".join, GROUPS)),
            ],
            env=environment,
            cwd=pathlib.Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors
    same = close(1e-10)
    params = arrays(FEW, jnp.float64)
    gradients = [arrays(FEW, jnp.float64, seed) for seed in SEEDS]
    with np.load(file) as found:
        for group in GROUPS:
            txs = {n: make(n) for n in group}
            state = {n: tx.init(params) for n, tx in txs.items()}
            step = jax.jit(together(txs))
            many, _ = follow(step, dict.fromkeys(group, params), state, gradients)
            for name, expected in many.items():
                for i, leaf in enumerate(jax.tree.leaves(expected)):
                    same(found[f"{name}/{i}"], leaf)


# State further apart than the parameters, and in another precision.


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


def test_state_that_rests_in_the_hosts_memory():
    mesh, distribute, rules = laid_out("fsdp")
    params = place(mesh, rules, arrays(SHAPES))
    gradients = [place(mesh, rules, arrays(SHAPES, seed=seed)) for seed in SEEDS]
    tx = make("cosmos", distribute=distribute)
    kinds = [m.kind for m in jax.devices()[0].addressable_memories()]
    with pytest.raises(ValueError, match=f"no 'tape', but {', '.join(kinds)}"):
        sharding.init_state(tx, params, memory_kind="tape")
    if "pinned_host" not in kinds:
        pytest.skip("this backend has no pinned_host memory")
    near, state = pinned("cosmos", tx, params, distribute)
    expected, _ = follow(near, fresh(params), state, gradients)
    away = sharding.offloaded(tx)
    far, state = pinned("cosmos", away, params, distribute, "pinned_host")
    result, state = follow(far, fresh(params), state, gradients)
    close(1e-6)(result, expected)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.memory_kind == ("pinned_host" if leaf.ndim else "device")
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
