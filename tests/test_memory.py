"""Temporary memory of compiled updates, from shapes alone, beside optax's Muon."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import optlab
from experiments.benchmark.peers import optax_muon, optax_muon_main

# A layer of LLaMA-130M.
SIDES = [(768, 768)] * 4 + [(768, 2048)] * 2 + [(2048, 768)]


def temporary(factory, params):
    roles = optlab.default_roles(stacked=("stack",))
    tx = factory(1e-2, roles=roles)
    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(tx.update).lower(params, state, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


# Beside what optax needs: its release 0.2.8, and its main branch. COSMOS stacks
# gradients and averages, the others one of them.
@pytest.mark.parametrize(
    ("shape", "names", "release", "main", "cosmos"),
    [
        (
            (),
            {f"layer{i}/{j}": s for i in range(6) for j, s in enumerate(SIDES)},
            *(0.08, 0.95, 1.02),
        ),
        ((12,), {f"stack{i}": s for i, s in enumerate(SIDES)}, 0.17, 0.65, 0.66),
    ],
    ids=["matrices", "stacks"],
)
def test_less_than_optax_muons(shape, names, release, main, cosmos):
    params = {
        name: jax.ShapeDtypeStruct((*shape, *side), jnp.float32)
        for name, side in names.items()
    }
    found = {
        name: temporary(optlab.registry.get(name).factory, params)
        for name in ("muon", "root", "scion", "cosmos")
    }
    anchors = temporary(optax_muon, params), temporary(optax_muon_main, params)
    assert max(found.values()) <= release * anchors[0], (found, anchors)
    assert found.pop("cosmos") <= cosmos * anchors[1], (found, anchors)
    assert max(found.values()) <= main * anchors[1], (found, anchors)


STACKED = optlab.default_roles(stacked=".")
# Of 48 matrices each, as parameters of one layer are in a scanned model.
STACKS = {
    name: jax.ShapeDtypeStruct((48, *side), jnp.float32)
    for name, side in {
        "square": (256, 256),
        "gate": (256, 512),
        "up": (256, 512),
        "down": (512, 256),
    }.items()
}


# What a donated step needs beside gradients, state and parameters, in parts of the
# parameters.
@pytest.mark.parametrize(
    ("name", "own", "most"),
    [
        ("root", {}, 0.1),
        ("cosmos", {"rank": 16}, 0.1),
        ("muon", {}, 0.1),
        ("scion", {}, 0.1),
        ("soap", {}, 0.3),
        ("lanton", {}, 0.1),
        ("lanton", {"noise_interval": 2}, 0.1),
        ("lanton", {"dual_norm": "lanczos"}, 0.1),
    ],
)
def test_a_donated_step_needs_the_memory_of_a_chunk(name, own, most):
    tx = optlab.registry.get(name).factory(1e-2, roles=STACKED, **own)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, STACKS)
    with pytest.warns(UserWarning, match="donated buffers were not usable"):
        donating = jax.jit(step, donate_argnums=(0, 1, 2))
        lowered = donating.lower(STACKS, state, STACKS)
    compiled = lowered.compile()
    whole = sum(4 * x.size for x in STACKS.values())
    assert compiled.memory_analysis().temp_size_in_bytes <= most * whole
    # A stack that is copied at every turn of its loop takes more time than memory.
    assert not re.findall(r"f32\[48,\d+,\d+\]\S* copy\(", compiled.as_text())
