"""How much memory a training step takes, before it runs and after."""

import jax

from experiments.trainer.state import TrainState, tree_bytes


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
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        line += f", of {_size(stats['bytes_limit'])}"
    return line


def peak(compiled) -> int:
    """The device's own peak, or what the compiled step holds where it keeps none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", planned(compiled.memory_analysis()))


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
