"""Which leaves an optimizer decays, read off the optimizer."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from optlab.state import make_abstract_state


def leaf_decays(tx: Any, params: Any) -> list[Any]:
    """The decay of every leaf, in the tree's order.

    Optimizers of this library say it while their state is made. What they do not
    decay, others may that stand in the same chain, so the update is traced: a leaf
    whose values go into their own update decays.

    Args:
      tx: any optax transformation.
      params: tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      For each leaf its weight where that is a plain number above zero, True where it
      is a schedule or not known, False where there is none, and None where `tx` did
      not let itself be traced.
    """
    state, told = make_abstract_state(tx, params)
    said = {path: _shown(weight) for path, weight in told.get("decay", {}).items()}
    # What moves on a sphere asks for its own values, and does not decay.
    sphere = told.get("sphere", {})
    paths = [tuple(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    traced: Sequence[bool | None] = [None] * len(paths)
    if not all(said.get(path) for path in paths):
        # It may need extra arguments, or parameters of another kind.
        with contextlib.suppress(TypeError, ValueError, AttributeError, NameError):
            traced = _traced_decays(tx, params, state)
    return [
        (said[path] or bool(found) if path in said else found)
        if path not in sphere
        else False
        for path, found in zip(paths, traced, strict=True)
    ]


def _shown(weight: Any) -> Any:
    if callable(weight) or isinstance(weight, jax.Array):
        return True
    return float(weight) if weight else False


def _traced_decays(tx: Any, params: Any, state: Any) -> list[bool]:
    def update(params, grads, state):
        return tx.update(grads, state, params)[0]

    jaxpr = jax.make_jaxpr(update)(params, params, state).jaxpr
    leaves = jax.tree.leaves(params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    own = [frozenset([i]) for i in range(len(leaves))]
    rest = [frozenset()] * (len(jaxpr.invars) - len(own))
    found = _sources(jaxpr, [*own, *rest], sizes)
    return [i in sources for i, sources in enumerate(found)]


def _sources(
    jaxpr: Any, inputs: Sequence[frozenset[int]], sizes: Sequence[int]
) -> list[frozenset[int]]:
    """Which parameters go into each output of a traced program, entry by entry.

    What has another size, such as a norm, carries none of them on.
    """
    nothing: frozenset[int] = frozenset()
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(x: Any) -> frozenset[int]:
        return nothing if _is_constant(x) else known.get(x, nothing)

    for eqn in jaxpr.eqns:
        ins = [of(x) for x in eqn.invars]
        if eqn.primitive.name == "cond":
            branches = [
                _sources(b.jaxpr, ins[1:], sizes) for b in eqn.params["branches"]
            ]
            outs = [nothing.union(*column) for column in zip(*branches, strict=True)]
        elif (inner := _inner(eqn)) is not None:
            outs = _sources(inner, ins, sizes)
        elif eqn.primitive.name == "mul" and any(map(_is_zero, eqn.invars)):
            outs = [nothing]
        else:
            outs = [nothing.union(*ins)] * len(eqn.outvars)
        for x, sources in zip(eqn.outvars, outs, strict=True):
            size = math.prod(x.aval.shape)
            known[x] = frozenset(i for i in sources if sizes[i] == size)
    return [of(x) for x in jaxpr.outvars]


def _inner(eqn: Any) -> Any:
    """The program that an equation calls with its own operands, or None."""
    for name in ("jaxpr", "call_jaxpr"):
        inner = eqn.params.get(name)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(eqn.invars):
            return inner if len(inner.outvars) == len(eqn.outvars) else None
    return None


def _is_constant(x: Any) -> bool:
    # A `Literal`. Its class stands in `jax.extend.core`, which takes 0.1 s to import.
    return hasattr(x, "val")


def _is_zero(x: Any) -> bool:
    return _is_constant(x) and np.ndim(x.val) == 0 and x.val == 0
