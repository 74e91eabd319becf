"""What every optimizer of the registry is held to, and the tree it is held over.

`python -m tests.helpers.conformance` writes the state layouts that
`test_conformance.py` pins (`tests/golden/state_layouts.json`); a changed line there is
a changed file format.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import optlab
from optlab.registry import get, names
from optlab.roles import leaf_name

LAYOUTS = pathlib.Path(__file__).parents[1] / "golden" / "state_layouts.json"
ROLES = optlab.default_roles(stacked=("^layers/",))

# Every kind of leaf, each matrix of another shape but for the last pair.
SHAPES = {
    "attention": {"out": {"kernel": (2, 3, 6)}, "query": {"kernel": (6, 2, 3)}},
    "conv": {"kernel": (3, 3, 2, 4)},
    "embed": {"embedding": (11, 6)},
    "head": {"kernel": (6, 11)},
    "layers": {"bias": (2, 8), "kernel": (2, 6, 8)},
    "norm": {"scale": (6,)},
    "square": {"kernel": (6, 6)},
    "tall": {"kernel": (8, 4)},
    "temperature": (),
    "wide": {"bias": (8,), "kernel": (4, 8)},
}
MATRICES = {
    "attention/out/kernel",
    "attention/query/kernel",
    "conv/kernel",
    "layers/kernel",
    "square/kernel",
    "tall/kernel",
    "wide/kernel",
}

# The transform that has to hold state for the hidden matrices, where its name is not
# the entry's own.
OWN_TRANSFORM = {
    "adam_h": "hyperball",
    "adamw": "adam",
    "cosmos_h": "hyperball",
    "lanton": "noiseadaptive",
    "muon_h": "hyperball",
    "normuon": "normalizeneurons",
    "scion": "lmo",
    "sgd": "trace",
    "soap_h": "hyperball",
    "stable_spam": "stablespam",
}

# Arguments that change what the state holds: an entry of the registry, and these.
VARIANTS = {
    "lanton, paired": ("lanton", {"noise": "paired"}),
    "soap, kl": ("soap", {"factors": "kl"}),
    "soap, one_sided": ("soap", {"one_sided": True}),
    "soap_h, kl": ("soap_h", {"factors": "kl"}),
    "spam, density 0.25": ("spam", {"density": 0.25}),
}

# Defaults that are made for larger models than the zoo.
SMALLER = {"scion": {"hidden_radius": 1.0, "embedding_radius": 6.0}}


# Those that step from the parameters, whose updates depend on them.
ON_SPHERES = {"adam_h", "cosmos_h", "muon_h", "soap_h"}


def zoo(dtype=jnp.float32, seed: int = 0, scale: float = 1.0):
    """Random arrays of the shapes above."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.standard_normal(shape), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def make(name: str, learning_rate=1e-2, **kwargs):
    """The optimizer or variant of that name with the zoo's roles."""
    name, own = VARIANTS.get(name, (name, {}))
    offered = {"roles": ROLES, **SMALLER.get(name, {}), **own, **kwargs}
    return get(name).build(learning_rate, **offered)


def extras(name: str, grads) -> dict:
    """The extra arguments that `update` needs of that name, made up from gradients."""
    name, own = VARIANTS.get(name, (name, {}))
    values = {
        # In float32, as the estimator gives it.
        "hessian_diag": jax.tree.map(
            lambda g: 0.5 * g.astype(jnp.float32) + 0.1, grads
        ),
        "other_grads": jax.tree.map(lambda g: 0.9 * g, grads),
    }
    return {need: values[need] for need in get(name).needs_for(own)}


@functools.cache
def jitted(name: str):
    """The optimizer and its compiled update, shared by the tests of one process."""
    tx = make(name)

    def update(grads, state, params):
        return tx.update(grads, state, params, **extras(name, grads))

    return tx, jax.jit(update)


def layout(name: str) -> list[str]:
    """Path, shape and dtype of every leaf of the state."""
    state = jax.eval_shape(make(name).init, zoo())
    return [
        f"{leaf_name(path)} {'x'.join(map(str, leaf.shape)) or '-'} {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    ]


if __name__ == "__main__":
    layouts = {name: layout(name) for name in [*names(), *VARIANTS]}
    LAYOUTS.write_text(json.dumps(layouts, indent=1) + "\n")
