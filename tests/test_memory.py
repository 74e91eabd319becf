"""Temporary memory of compiled updates, from shapes alone, beside optax's Muon."""

import jax
import jax.numpy as jnp
import pytest

import optlab
from experiments.benchmark.peers import optax_muon

# A layer of LLaMA-130M.
SIDES = [(768, 768)] * 4 + [(768, 2048)] * 2 + [(2048, 768)]


def temporary(factory, params):
    roles = optlab.default_roles(stacked=("stack",))
    tx = factory(1e-2, roles=roles)
    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(tx.update).lower(params, state, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("shape", "names", "most"),
    [
        ((), {f"layer{i}/{j}": s for i in range(6) for j, s in enumerate(SIDES)}, 0.7),
        ((12,), {f"stack{i}": s for i, s in enumerate(SIDES)}, 0.9),
    ],
    ids=["matrices", "stacks"],
)
def test_less_than_optax_muons(shape, names, most):
    params = {
        name: jax.ShapeDtypeStruct((*shape, *side), jnp.float32)
        for name, side in names.items()
    }
    reference = temporary(optax_muon, params)
    found = {
        name: temporary(optlab.registry.get(name).factory, params) / reference
        for name in ("muon", "root", "cosmos", "scion")
    }
    assert max(found.values()) <= most, found
