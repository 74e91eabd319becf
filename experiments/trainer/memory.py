"""How much memory a training step takes, before it runs and after."""

import math
import os

import jax

from experiments.errors import UserError
from experiments.trainer.state import TrainState, tree_bytes


def check(abstract: TrainState) -> None:
    """Refuses a state that no step could work on, for it alone fills the device.

    Args:
      abstract: the state, of all devices.

    Raises:
      UserError: if a device's part of the state is larger than its memory.
    """
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
    if needed > (there := _memory()):
        raise UserError(
            f"--config.model: parameters and optimizer state need {_size(needed)} "
            f"a device, which has {_size(there)}"
        )


def _memory() -> int:
    """Bytes of a device; those of one machine's CPU devices are shared."""
    devices = jax.local_devices()
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _stats().get("bytes_limit", machine // len(devices))


def _stats() -> dict[str, int]:
    """What the device says of its memory; a CPU says nothing."""
    return jax.local_devices()[0].memory_stats() or {}


def report(abstract: TrainState, compiled) -> str:
    """One line: parameters, state and temporaries of the compiled step.

    Args:
      abstract: the state, of all devices.
      compiled: the training step.
    """
    plan = compiled.memory_analysis()
    parts = {
        "parameters": tree_bytes(abstract.params),
        "optimizer state": tree_bytes(abstract.opt_state.inner_state),
        "moving average": tree_bytes(abstract.ema),
    }
    whole = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    line = (
        f"memory: {whole}; a step needs {_size(planned(plan))} a device, "
        f"{_size(plan.temp_size_in_bytes)} of it temporary"
    )
    stats = _stats()
    if "bytes_limit" in stats:
        line += f", of {_size(stats['bytes_limit'])}"
    return line


def peak(compiled) -> int:
    """The device's own peak, or what the compiled step holds where it keeps none."""
    return _stats().get("peak_bytes_in_use", planned(compiled.memory_analysis()))


def planned(plan) -> int:
    """Bytes of a compiled program's arguments, results and temporaries, on a device."""
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )


def _size(count: int) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000
    return f"{count:,.3g} GB"
