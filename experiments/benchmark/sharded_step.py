"""One sharded optimizer step, compiled and not run: what it costs a device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python -m experiments.benchmark.sharded_step 350M 8 cosmos root

Prints one JSON object a line. Parameters are laid out by `fsdp_rules`, the step's
layouts are pinned on both sides and its state is donated.
"""

import json
import math
import sys
import time
from typing import Any

import jax

import optlab
from experiments.benchmark import peers
from experiments.benchmark.catalogue import llama_shapes, optimizer
from experiments.flops import count_flops
from experiments.hlo import Program
from optlab import sharding

COLUMNS = (
    "model",
    "devices",
    "optimizer",
    "collectives",
    "in loops",
    "large",
    "MB moved",
    "GFLOPs of products",
    "GFLOPs of QR and eigh",
    "GFLOPs of elements",
    "MB of state",
    "MB of temporaries",
    "seconds to compile",
)


def measure(model: str, devices: int, method: str) -> dict[str, Any]:
    """Compiles one optimizer's step for one model on that many devices.

    Args:
      model: a size of `experiments.models.llama`, or `SIZE:LAYERS`.
      devices: of the mesh, which this process must have.
      method: a name of the registry.

    Returns:
      One row of the suite, as `COLUMNS` names it. All of it is per device;
      collectives count as often as they run, and their bytes are those of their
      results.
    """
    mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
    distribute = sharding.over_mesh(mesh, "data")
    tx = optimizer(method, distribute=distribute)
    params = llama_shapes(model)
    specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
    state = jax.eval_shape(tx.init, params)
    kept = sharding.to_shardings(
        mesh, sharding.state_specs(tx, params, specs, distribute=distribute)
    )
    own = sharding.to_shardings(mesh, specs)
    needs = {need: params for need in optlab.registry.get(method).needs}

    def update(grads, state, params, extra):
        return tx.update(grads, state, params, **extra)

    step = jax.jit(
        update,
        in_shardings=(own, kept, own, {need: own for need in needs}),
        out_shardings=(own, kept),
        donate_argnums=1,
    )
    shapes = (params, state, params, needs)
    lowered = step.lower(*shapes)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    program = Program(compiled.as_text())
    collectives = program.collectives()
    # Of all devices; what the text does not show is counted in the traced program.
    traced = count_flops(update, *shapes, while_trips=1)
    values = (
        sum(c.trips for c in collectives),
        sum(c.trips for c in collectives if c.in_loop),
        sum(c.trips for c in collectives if c.elements > 4096),
        sum(c.trips * c.bytes for c in collectives) / 1e6,
        program.matmul_flops() / 1e9,
        traced.factorization / devices / 1e9,
        traced.elementwise / devices / 1e9,
        _local_bytes(state, kept) / 1e6,
        compiled.memory_analysis().temp_size_in_bytes / 1e6,
        seconds,
    )
    rounded = (round(value, 3) for value in values)
    return dict(zip(COLUMNS, (model, devices, method, *rounded), strict=True))


def _local_bytes(state: Any, layouts: Any) -> int:
    return sum(
        math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, layout in zip(*map(jax.tree.leaves, (state, layouts)), strict=True)
    )


if __name__ == "__main__":
    peers.register()
    for name in sys.argv[3:]:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), name)), flush=True)
