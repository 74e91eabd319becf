"""One of two processes that take sharded steps together over gloo.

    python -m tests.helpers.two_processes ADDRESS RANK FILE NAME,NAME...

Names with commas between them share a program. The first process writes the
parameters after the steps to FILE, one array a leaf.
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from optlab import sharding
from tests.helpers.sharded import (
    FEW,
    SEEDS,
    arrays,
    follow,
    fresh,
    make,
    pinned_together,
)


def main(address, rank, file, groups):
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    mesh = sharding.make_mesh({"data": -1})
    rules = sharding.fsdp_rules(mesh)
    distribute = sharding.over_mesh(mesh, "data")

    def place(tree):
        # No process holds the whole of an array.
        layouts = sharding.to_shardings(mesh, sharding.param_specs(tree, rules))
        return jax.tree.map(
            lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]),
            jax.tree.map(np.asarray, tree),
            layouts,
        )

    found = {}
    params = place(arrays(FEW, np.float64))
    gradients = [place(arrays(FEW, np.float64, seed)) for seed in SEEDS]
    for group in groups:
        txs = {name: make(name, distribute=distribute) for name in group.split(",")}
        step, state = pinned_together(txs, params, distribute)
        result, _ = follow(step, fresh(dict.fromkeys(txs, params)), state, gradients)
        whole = multihost_utils.process_allgather(result, tiled=True)
        for name, tree in whole.items():
            for i, leaf in enumerate(jax.tree.leaves(tree)):
                found[f"{name}/{i}"] = leaf
    if jax.process_index() == 0:
        np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
