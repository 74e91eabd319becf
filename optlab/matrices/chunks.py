"""Stacks a chunk of their matrices at a time, and leaves one at a time."""

import functools
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Matrices that are worked on at a time: enough to fill a device, and little memory. On
# a CPU the product of two stacks takes longer than those of their matrices in turn.
CHUNK_BYTES = 16 * 2**20
CPU_CHUNK_BYTES = 2**20


def in_chunks(
    f: Callable[..., Any],
    trees: int,
    chunk_bytes: int | None,
    arrays: Sequence[jax.Array],
) -> tuple[Any, ...]:
    """`f` on a stack, a chunk of its slices at a time, so that temporaries are small.

    Where no size is given, the platform decides, when the program is lowered.

    Args:
      f: a function of arrays with a leading stack axis, each slice of which it treats
        alone.
      trees: how many of the arrays are matrices; the others are factors.
      chunk_bytes: of the matrices of a chunk. None: `CPU_CHUNK_BYTES` on a CPU, and
        `CHUNK_BYTES` elsewhere.
      arrays: what `f` gets, `(S, ...)` each.
    """
    stack, *_ = shape = arrays[0].shape
    budgets = [chunk_bytes] * 2 if chunk_bytes else [CPU_CHUNK_BYTES, CHUNK_BYTES]
    sizes = [chunk_size(shape, arrays[0].dtype, budget) for budget in budgets]
    if min(sizes) >= stack:
        return f(*arrays)
    results = jax.eval_shape(lambda: f(*(x[:1] for x in arrays)))
    cpu, default = (partial(_chunk_by_chunk, f, results, trees, k) for k in sizes)
    if sizes[0] == sizes[1]:
        return default(*arrays)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def _chunk_by_chunk(
    f: Callable[..., Any], shapes: Any, trees: int, size: int, *arrays: jax.Array
) -> tuple[Any, ...]:
    """`f` on `size` slices of a stack at a time; `shapes` are those of its results.

    The resulting matrices are written over the first stack, chunk by chunk, and the
    new factors over the old ones. Where their buffers may be taken, as in a donated
    step, nothing of the stack's size is made.
    """
    stack = arrays[0].shape[0]
    if size >= stack:
        return f(*arrays)
    whole = [
        None if x is None else jax.ShapeDtypeStruct((stack, *x.shape[1:]), x.dtype)
        for x in shapes
    ]
    rooms = _rooms(whole, trees, arrays)

    def body(k, results):
        start = k * size
        chunk = [
            lax.dynamic_slice_in_dim(x, start, size)
            for x in _now(results, trees, arrays)
        ]
        found = f(*chunk)
        # XLA copies the whole stack at every turn if a chunk might be written over
        # before all has been read of it.
        start = once(never([x for x in found if x is not None]), start)
        return tuple(
            old if old is None else lax.dynamic_update_slice_in_dim(old, new, start, 0)
            for old, new in zip(results, found, strict=True)
        )

    return lax.fori_loop(0, stack // size, body, rooms)


def one_by_one(
    f: Callable[..., Any],
    trees: int,
    leaves: Sequence[tuple[jax.Array, ...]],
    seen: Sequence[Callable[..., Any]],
    back: Sequence[Callable[..., Any]],
) -> list[tuple[Any, ...]]:
    """`f` on each of some leaves in turn: compiled once, and nothing is stacked.

    What comes out is written over what went in, as in `in_chunks`.

    Args:
      f: as `in_chunks` has it.
      trees: how many of the arrays of each leaf are matrices; the others are factors.
      leaves: their arrays, as the parameters have them: XLA would copy what is put
        into another shape before the loop.
      seen: for each leaf, what makes arrays `(S, ...)` of it, the same shapes for all.
      back: for each leaf, what makes leaves of the results.

    Returns:
      The results for each leaf.
    """

    def body(k, results):
        def read(i):
            return lambda: seen[i](_now(results[i], trees, leaves[i]))

        found = f(*lax.switch(k, [read(i) for i in range(len(leaves))]))
        # One choice a leaf: XLA copies all leaves at every turn if they are chosen
        # from together.
        return [
            lax.cond(k == i, lambda i=i: back[i](found), lambda old=old: old)
            for i, old in enumerate(results)
        ]

    found = jax.eval_shape(lambda: f(*seen[0](leaves[0])))
    shapes = [jax.eval_shape(to_leaf, found) for to_leaf in back]
    rooms = [_rooms(x, trees, own) for x, own in zip(shapes, leaves, strict=True)]
    return lax.fori_loop(0, len(leaves), body, rooms)


def _rooms(shapes: Any, trees: int, arrays: Sequence[jax.Array]) -> tuple[Any, ...]:
    """Where results go: over the first matrix and the factors, where shapes agree."""
    inputs = [arrays[0], *arrays[trees:]]
    return tuple(map(_room, shapes, [*inputs, *[None] * (len(shapes) - len(inputs))]))


def _now(
    results: Sequence[Any], trees: int, arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """The arrays; what is written over is read there, where what is to come is old."""
    now = list(arrays)
    for place, result in zip((0, *range(trees, len(arrays))), results, strict=False):
        if result is not None and _same(result, arrays[place]):
            now[place] = result
    return now


def never(arrays: Sequence[jax.Array]) -> jax.Array:
    """False, which is known only when the arrays are."""
    entries = [
        lax.squeeze(lax.slice(x, (0,) * x.ndim, (1,) * x.ndim), range(x.ndim))
        for x in arrays
    ]
    return functools.reduce(operator.or_, [(x < 0) & (x > 0) for x in entries])


def once(never: jax.Array, x: jax.Array) -> jax.Array:
    """The same number or array, as one that waits until `never` is known.

    XLA drops `lax.optimization_barrier` before it looks what waits for what.
    """
    return jnp.where(never, jnp.zeros_like(x), x)


def _room(x: Any, given: Any) -> Any:
    if x is None:
        return None
    if given is not None and _same(x, given):
        return given
    return jnp.zeros(x.shape, x.dtype)


def _same(x: Any, y: Any) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype


def chunk_size(shape: Sequence[int], dtype: Any, chunk_bytes: int) -> int:
    """How many matrices of a stack `(S, m, n)` are worked on at a time.

    The largest divisor of `S` whose matrices take at most `chunk_bytes`, and one.
    """
    stack, m, n = shape
    most = max(chunk_bytes // max(m * n * jnp.dtype(dtype).itemsize, 1), 1)
    return max(
        (d for d in range(1, stack + 1) if stack % d == 0 and d <= most), default=1
    )
