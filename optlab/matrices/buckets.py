"""A function of matrices over whole trees, in as few large stacks as can be."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optlab.roles import View

# A leaf of so many matrices is a stack that is worked on as it is.
_STACK = 4
# Matrices that are worked on at a time: enough to fill a device, and little memory. On
# a CPU the product of two stacks takes longer than those of their matrices in turn.
CHUNK_BYTES = 16 * 2**20
CPU_CHUNK_BYTES = 2**20
# Separate leaves without factors that share a bucket: its stack is temporary memory, of
# which two are there at a time, and each bucket is compiled. ROOT's of the 84 matrices
# of a LLaMA-130M, in buckets of at most 4, 8, 12, 24 and all, take 6.3, 5.4, 3.9, 3.3
# and 2.8 s of a CPU to compile. With factors it is far more: COSMOS's 17 s in twelves.
LEAVES = 12
# From so many leaves of one shape on, XLA is not told which part of a stack is whose.
_MANY = 8


class Distribute(Protocol):
    """Turns a function of groups of stacks into the same function, computed apart.

    What keeps factors where they are worked on says so itself, and is asked for it:
    `lives_by_stack(length)`, whether factors with that leading axis are such;
    `factor_spec(shape, stacked)`, the `PartitionSpec` of a factor `(stack..., x, y)`,
    whose first axis is one of matrices if `stacked`; and `size`, its devices, or None.
    The factors of a plain function without these are laid out as their parameters.
    """

    def __call__(
        self, f: Callable[..., Any], matrices: int, stacks: Sequence[int], /
    ) -> Callable[..., Any]:
        """`f(*groups) -> one tuple a group`, each group a tuple of arrays.

        The arrays of a group have one common leading stack axis, and so have those of
        its result; `f` treats every slice alone. The first `matrices` of a group, and
        the first of a result, are stacks of parameter-like matrices; the others are
        factors. `stacks` has the size of the first stack axis that a group's leaves
        have, 1 for none: by that axis their factors may be laid out.
        """
        ...


def map_matrices(
    f: Callable[..., Any],
    views: Any,
    trees: Sequence[Any],
    factors: Sequence[Any] = (),
    *,
    made: Callable[..., tuple[jax.Array, ...]] | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
    wide: bool = False,
) -> tuple[Any, ...]:
    """Applies `f` to every matrix of some trees, in as few large stacks as it can.

    Leaves of one shape share a bucket, in which `f` runs once; without `distribute` a
    leaf that is a large stack itself has its own, and separate leaves without factors
    share one of at most `LEAVES`. A bucket is worked through in chunks
    (:func:`chunk_size`), and the resulting matrices are written over the leaves of the
    first tree, where their memory is free.

    Args:
      f: `f(*matrices, *factors) -> (matrix, *factors)` on arrays with one common
        leading stack axis, each slice of which it treats alone. The matrix may be
        None, where only the factors are of interest.
      views: what `tree_views` made of the first tree.
      trees: trees of leaves with those views; `f` gets them as `(S, m, n)`.
      factors: trees of arrays that have the stack axes and then other axes;
        `f` gets them as `(S, ...)`.
      made: an elementwise function of the trees' leaves that makes what `f` gets for
        matrices. For a stack alone in its bucket, without `distribute`, it is computed
        chunk by chunk, so that nothing of its size is made. None: the leaves
        themselves.
      distribute: what computes `f` apart, slice by slice, over a mesh.
      chunk_bytes: of the matrices of a chunk. None: `CPU_CHUNK_BYTES` on a CPU, and
        `CHUNK_BYTES` elsewhere.
      wide: `f` commutes with transposition and takes no factors. It gets tall matrices
        transposed, and matrices of one shape share a bucket whichever way round they
        are and whatever their stack.

    Returns:
      The tree of the resulting matrices as leaves, then those of the factors.
    """
    flat_views, treedef = jax.tree.flatten(views, is_leaf=lambda x: isinstance(x, View))
    columns = [treedef.flatten_up_to(tree) for tree in (*trees, *factors)]
    items = []
    for view, *arrays in zip(flat_views, *columns, strict=True):
        matrices = map(view.matrices, arrays[: len(trees)])
        items.append((*matrices, *map(view.flat, arrays[len(trees) :])))
    # What is to be stacked is turned on the way, not after.
    turned = [wide and distribute is None and _is_small_and_tall(x[0]) for x in items]
    items = [
        tuple(x.mT for x in item) if turn else item
        for item, turn in zip(items, turned, strict=True)
    ]
    results: list[Any] = [None] * len(items)
    done = None
    for groups in _buckets(items, wide, apart=distribute is None):
        g, count, members = f, len(trees), [i for group in groups for i in group]
        joins = distribute is None and len(members) > 1
        if made is not None and distribute is None and not joins:
            g = partial(_after, made, f, count)
        elif made is not None:
            # What is stacked or moved is what is worked on, and no more.
            for i in members:
                work = tuple(made(*items[i][: len(trees)]))
                items[i], count = (*work, *items[i][len(trees) :]), len(work)
        if joins and done is not None:
            # The stacks of one bucket make room for those of the next.
            items[members[0]] = tuple(_once(done, x) for x in items[members[0]])
        # On a mesh what is cut into chunks is a device's part of a stack.
        g = partial(_joined, g, count, chunk_bytes, wide)
        if distribute is not None:
            stacks = [(*flat_views[group[0]].stack, 1)[0] for group in groups]
            g = distribute(g, count, stacks)
        parts = g(*(_merge([items[i] for i in group]) for group in groups))
        if joins:
            done = jax.tree.leaves(parts)
        for group, part in zip(groups, parts, strict=True):
            count = len(group)
            hidden = distribute is None and count >= _MANY
            places = _hidden_places(count, items[0][0]) if hidden else range(count)
            for place, i in zip(places, group, strict=True):
                view = flat_views[i]
                own = jax.tree.map(partial(_member, place, count), part)
                matrix, *others = own
                if matrix is not None:
                    matrix = view.leaf(matrix.mT if turned[i] else matrix)
                results[i] = (matrix, *map(view.unflat, others))
    empty = [()] * (1 + len(factors))
    return tuple(map(treedef.unflatten, zip(*results, strict=True) if items else empty))


def _is_small_and_tall(x: jax.Array) -> bool:
    stack, m, n = x.shape
    return stack < _STACK and m > n


def _buckets(
    items: list[tuple[jax.Array, ...]], wide: bool, *, apart: bool
) -> list[list[list[int]]]:
    """Buckets of groups of items; a group's arrays have the very same shapes.

    Where they may stay apart, what is a stack already is a bucket alone: to join
    it with others would save little compiling, and copy it.
    """
    buckets: dict[Any, dict[Any, list[int]]] = {}
    for i, item in enumerate(items):
        bucket: Any
        group = bucket = tuple((x.shape, x.dtype) for x in item)
        if apart and item[0].shape[0] >= _STACK:
            bucket = i
        elif wide:
            bucket = tuple((*sorted(x.shape[1:]), x.dtype) for x in item)
        buckets.setdefault(bucket, {}).setdefault(group, []).append(i)
    whole = [list(bucket.values()) for bucket in buckets.values()]
    if not (apart and wide):
        return whole
    return [part for bucket in whole for part in _split(bucket, LEAVES)]


def _split(bucket: list[list[int]], most: int) -> list[list[list[int]]]:
    """Buckets of at most so many items, as even as can be; groups stay in order."""
    items = [(group, i) for group, members in enumerate(bucket) for i in members]
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [
        [[i for _, i in run] for _, run in itertools.groupby(part, lambda x: x[0])]
        for part in parts
    ]


def _merge(items: list[tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
    """Stacks of one shape as one: side by side within each slice, so that a stack
    which is cut up over devices stays where it is.
    """
    if len(items) == 1:
        return items[0]
    return tuple(
        jnp.stack(column, 1).reshape(-1, *column[0].shape[1:])
        for column in zip(*items, strict=True)
    )


def _member(place: int | jax.Array, count: int, x: jax.Array) -> jax.Array:
    """One item's part of what `_merge` made."""
    if count == 1:
        return x
    items = x.reshape(-1, count, *x.shape[1:])
    if isinstance(place, int):
        return items[:, place]
    return lax.dynamic_index_in_dim(items, place, 1, keepdims=False)


def _hidden_places(count: int, x: jax.Array) -> tuple[jax.Array, ...]:
    """`0, 1, ..., count - 1` as numbers that the compiler does not know.

    XLA compiles every slice at a known place as a separate kernel, for some 20 ms on
    a CPU; slices of one shape at unknown places share one. A compiler that saw through
    this would be slow again, and right.
    """

    def places() -> tuple[np.uint32, ...]:
        return tuple(map(np.uint32, range(count)))

    return lax.cond(x[(0,) * x.ndim] > 0, places, places)


def _joined(
    f: Callable[..., Any],
    trees: int,
    chunk_bytes: int | None,
    wide: bool,
    *groups: tuple[jax.Array, ...],
) -> tuple[Any, ...]:
    """Runs `f` once on the stacks of all groups; gives each its part of the result.

    `trees` is how many of a group's arrays are matrices.
    """
    if len(groups) == 1:
        m, n = groups[0][0].shape[1:]
        turned = partial(_turned, f) if wide and m > n else f
        return (_in_chunks(turned, trees, chunk_bytes, groups[0]),)
    talls = [group[0].shape[1] > group[0].shape[2] for group in groups]
    turned = [
        [x.mT if tall else x for x in group]
        for group, tall in zip(groups, talls, strict=True)
    ]
    columns = [jnp.concatenate(column) for column in zip(*turned, strict=True)]
    ends = np.cumsum([group[0].shape[0] for group in groups])[:-1]
    matrix, *rest = _in_chunks(f, trees, chunk_bytes, columns)
    matrix = [None] * len(groups) if matrix is None else jnp.split(matrix, ends)
    return tuple(
        (x.mT if tall and x is not None else x, *others)
        for tall, x, *others in zip(
            talls, matrix, *(jnp.split(y, ends) for y in rest), strict=True
        )
    )


def _after(made, f, trees: int, *arrays: jax.Array) -> tuple[Any, ...]:
    """`f` of what `made` makes of the matrices, and of the factors."""
    return f(*made(*arrays[:trees]), *arrays[trees:])


def _turned(f: Callable[..., Any], *matrices: jax.Array) -> tuple[Any, ...]:
    """`f` of the transposed matrices, transposed back."""
    matrix, *rest = f(*(x.mT for x in matrices))
    return (None if matrix is None else matrix.mT, *rest)


def _in_chunks(
    f: Callable[..., Any],
    trees: int,
    chunk_bytes: int | None,
    arrays: Sequence[jax.Array],
) -> tuple[Any, ...]:
    """`f` on a stack, a chunk of its slices at a time, so that temporaries are small.

    Where no size is given, the platform decides, when the program is lowered.
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
    """`f` on so many slices of a stack at a time; `shapes` are those of its results.

    The resulting matrices are written over the first stack, chunk by chunk, and the
    new factors over the old ones. Where their buffers may be taken, as in a donated
    step, nothing of the stack's size is made.
    """
    stack = arrays[0].shape[0]
    if size >= stack:
        return f(*arrays)
    # What comes out replaces what went in, where that has its shape.
    inputs = [arrays[0], *arrays[trees:]]
    inputs += [None] * (len(shapes) - len(inputs))
    results = [_room(x, given, stack) for x, given in zip(shapes, inputs, strict=False)]
    places = [0, *range(trees, len(arrays))]

    def body(k, results):
        # What was written over is read from there; its chunks to come are the old.
        now = dict(enumerate(arrays))
        for place, result in zip(places, results, strict=False):
            if result is not None and _same(result, arrays[place]):
                now[place] = result
        start = k * size
        chunk = [
            lax.dynamic_slice_in_dim(now[i], start, size) for i in range(len(arrays))
        ]
        found = f(*chunk)
        # XLA copies the whole stack at every turn if a chunk might be written over
        # before all has been read of it.
        start = _once([x for x in found if x is not None], start)
        return [
            old if old is None else lax.dynamic_update_slice_in_dim(old, new, start, 0)
            for old, new in zip(results, found, strict=True)
        ]

    return tuple(lax.fori_loop(0, stack // size, body, results))


def _once(done: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """The same number or array, as one that waits until others are known.

    XLA drops `lax.optimization_barrier` before it looks what waits for what.
    """
    entries = [y[(0,) * y.ndim] for y in done]
    never = functools.reduce(operator.or_, [(y < 0) & (y > 0) for y in entries])
    return jnp.where(never, jnp.zeros_like(x), x)


def _room(x: Any, given: Any, stack: int) -> Any:
    """Where a result goes: over what was given, if it has the same shape."""
    if x is None:
        return None
    shape = (stack, *x.shape[1:])
    if given is not None and given.shape == shape and given.dtype == x.dtype:
        return given
    return jnp.zeros(shape, x.dtype)


def _same(x: jax.Array, y: jax.Array) -> bool:
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
