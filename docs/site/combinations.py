"""Which wrapper goes around which method, and what state is left: two tables.

They stand in `docs/wrappers.md`; `python -m docs.site.combinations` prints them.

`tests/wrappers/test_every_wrapper.py` runs every cell and asserts that what is refused
here is refused there.
"""

import inspect
import math

import jax

import optlab
from docs.site import numbers
from experiments.benchmark import catalogue
from optlab import directions, registry

# What they are written as -> where they stand, the head of their column.
WRAPPERS = {
    "cautious": "`cautious`",
    "cautious_decay": "`cautious_decay`",
    "int8": '`small_state` "int8"',
    "bfloat16": '`small_state` "bfloat16"',
    "split_weights": "`split_weights`",
    "skip_spikes": "`skip_spikes`",
    "normalize_neurons": "`normalize_neurons`",
    "hyperball": "`hyperball`",
}
_ON_A_SPHERE = "no: steps on a sphere already"
_NO_DECAY = "no: its constraint is its decay"


def refusal(method: str, wrapper: str) -> str:
    """Why a method does not go into a wrapper; nothing where it does."""
    if wrapper in ("normalize_neurons", "hyperball"):
        return "" if hasattr(directions, method) else _ON_A_SPHERE
    if wrapper == "cautious_decay":
        arguments = inspect.signature(registry.get(method).factory).parameters
        return "" if "cautious_decay" in arguments else _NO_DECAY
    return ""


def table() -> str:
    """Every method of the registry by every wrapper."""
    body = [
        [f"`{method}`", *(refusal(method, wrapper) or "yes" for wrapper in WRAPPERS)]
        for method in registry.names()
    ]
    return numbers.table(["", *WRAPPERS.values()], body)


def state_table() -> str:
    """State of four methods at the shapes of a LLaMA-130M, by `jax.eval_shape`."""
    params = catalogue.llama_shapes()
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    body = []
    for method in ("adamw", "cosmos", "muon", "lion"):
        tx = catalogue.optimizer(method)
        cells = []
        for made in (tx, *(optlab.small_state(tx, x) for x in ("int8", "bfloat16"))):
            state = jax.tree.leaves(jax.eval_shape(made.init, params))
            held = sum(x.size * x.dtype.itemsize for x in state)
            cells.append(f"{held / 1e6:,.0f} MB ({held / count:.2f})")
        body.append([f"`{method}`", *cells])
    head = ["LLaMA-130M", "float32", "`small_state` int8", "`small_state` bfloat16"]
    return numbers.table(head, body)


TABLES = {"combinations": table, "small states": state_table}

if __name__ == "__main__":
    print(*(make() for make in TABLES.values()), sep="\n\n")
