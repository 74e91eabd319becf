"""Temporary memory of a compiled step beside its time to compile, from shapes alone.

The parameters are the blocks of a LLaMA, as separate leaves and as stacks of layers. A
donated step gives its gradients, state and parameters away, as a training step does.
"""

import pathlib
import time
import warnings
from collections.abc import Iterator

import jax
import optax
from absl import flags

import optlab
from experiments.benchmark import scaling, step, table, timing
from experiments.benchmark.catalogue import llama_shapes, optimizer
from experiments.errors import UserError
from optlab.matrices import buckets, chunks

FLAGS = flags.FlagValues()
_METHODS = flags.DEFINE_list(
    "methods",
    ["optax_muon", "adamw", "muon", "scion", "root", "cosmos", "lanton", "soap"],
    "memory: what is compiled, beside optax's main branch",
    flag_values=FLAGS,
)
_JOINED = flags.DEFINE_list(
    "joined",
    ["4", "8", "12", "24", "84"],
    "memory: how many separate leaves of ROOT share a stack, where stacks are made",
    flag_values=FLAGS,
)
_REFERENCE = "optax_muon_main"
COLUMNS = (
    "parameters",
    "optimizer",
    "update, MB",
    "/ optax main",
    "donated step, MB",
    "/ optax main",
    "/ parameters",
    "compile, s of CPU",
    "/ optax main",
)


def measured(name: str, params, roles) -> tuple[float, float, float]:
    """Temporary MB of an update and of a donated step, and seconds to compile it."""
    tx = optimizer(name, roles=roles)

    def whole(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    arguments = params, jax.eval_shape(tx.init, params), params
    jax.clear_caches()
    update = jax.jit(tx.update).lower(*arguments).compile()
    jax.clear_caches()
    start = time.process_time()
    with warnings.catch_warnings():
        # No result takes the place of a gradient.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        donated = jax.jit(whole, donate_argnums=(0, 1, 2)).lower(*arguments).compile()
    seconds = time.process_time() - start
    sizes = [x.memory_analysis().temp_size_in_bytes for x in (update, donated)]
    return (*(size / 1e6 for size in sizes), seconds)


def cases(model: str) -> Iterator[tuple[str, str, tuple[float, float, float], float]]:
    """Parameters, method, what is measured of it, and the parameters' MB."""
    stacked = llama_shapes(model)["layers"]
    separate = step.blocks(model, jax.tree.leaves(stacked)[0].shape[0])
    mb = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stacked)) / 1e6
    names = [_REFERENCE, *_METHODS.value]
    for label, params, rule in (
        ("separate leaves", separate, optlab.default_roles()),
        ("stacks of layers", stacked, optlab.default_roles(stacked=".")),
    ):
        for name in names:
            yield label, name, measured(name, params, rule), mb
    # As on accelerators, where separate leaves are joined in stacks.
    own = buckets.LEAVES, chunks.CPU_CHUNK_BYTES
    chunks.CPU_CHUNK_BYTES = chunks.CHUNK_BYTES
    try:
        for leaves in map(int, _JOINED.value):
            buckets.LEAVES = leaves
            found = measured("root", separate, optlab.default_roles())
            yield f"separate leaves, joined by {leaves}", "root", found, mb
    finally:
        buckets.LEAVES, chunks.CPU_CHUNK_BYTES = own


def run(out: pathlib.Path) -> int:
    """Writes memory.csv and memory.md into `out`."""
    model = step.MODEL.value or "130M"
    scaling.check("methods", _METHODS.value, optlab.registry.names())
    for number in _JOINED.value:
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--joined: given {number!r}, allowed are ints from 1 on")
    rows, reference = [], {}
    for label, name, found, mb in cases(model):
        kind = label.split(",")[0]
        if name == _REFERENCE:
            reference[kind] = found
        update, donated, seconds = found
        first, second, third = (
            a / b for a, b in zip(found, reference[kind], strict=True)
        )
        rows.append(
            (
                label,
                name,
                f"{update:.0f}",
                f"{first:.2f}",
                f"{donated:.0f}",
                f"{second:.2f}",
                f"{donated / mb:.3f}",
                f"{seconds:.1f}",
                f"{third:.2f}",
            )
        )
    methods, joined = ",".join(_METHODS.value), ",".join(_JOINED.value)
    heading = (
        f"Made by `python -m experiments.benchmark --suite=memory --model={model} "
        f"--methods={methods} --joined={joined}` on {timing.machine()}.\n"
        "Bytes are the compiler's own count and have no noise; seconds are of the "
        "processor, tracing included. `optax_muon` is optax as\nreleased, "
        "`optax_muon_main` its main branch. On a CPU separate leaves are worked on in "
        "turn; the rows that join\nthem show what accelerators do, and what the number "
        "of leaves in a stack costs."
    )
    table.write(out / "memory", heading, COLUMNS, rows)
    return 0
