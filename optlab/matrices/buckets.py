"""A function of matrices over whole trees, in as few large stacks as can be."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optlab.matrices import chunks
from optlab.roles import View

# A leaf of so many matrices is a stack that is worked on as it is.
_STACK = 4
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
    (:mod:`optlab.matrices.chunks`), and the resulting matrices are written over the
    leaves of the first tree, where their memory is free. Where a chunk is a single
    matrix, on a CPU or with a small `chunk_bytes`, separate leaves are not stacked.

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
      chunk_bytes: of the matrices of a chunk. None: `chunks.CPU_CHUNK_BYTES` on a
        CPU, and `chunks.CHUNK_BYTES` elsewhere.
      wide: `f` commutes with transposition and takes no factors. It gets tall matrices
        transposed, and matrices of one shape share a bucket whichever way round they
        are and whatever their stack.

    Returns:
      The tree of the resulting matrices as leaves, then those of the factors.
    """
    flat_views, treedef = jax.tree.flatten(views, is_leaf=lambda x: isinstance(x, View))
    columns = [treedef.flatten_up_to(tree) for tree in (*trees, *factors)]
    leaves = list(zip(*columns, strict=True)) or [()] * len(flat_views)
    items = [_seen(v, len(trees), x) for v, x in zip(flat_views, leaves, strict=True)]
    results: list[Any] = [None] * len(items)
    wait = None
    for groups in _buckets(items, wide, apart=distribute is None):
        members = [i for group in groups for i in group]
        bucket = _Bucket(
            f,
            made,
            len(trees),
            [len(group) for group in groups],
            [flat_views[i] for i in members],
            wide,
            chunk_bytes,
            distribute,
        )
        found, wait = bucket([leaves[i] for i in members], wait)
        for i, result in zip(members, found, strict=True):
            results[i] = result
    empty = [()] * (1 + len(factors))
    return tuple(map(treedef.unflatten, zip(*results, strict=True) if items else empty))


def _seen(view: View, trees: int, leaves: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Leaves as stacks of matrices, and factors with one stack axis."""
    return (*map(view.matrices, leaves[:trees]), *map(view.flat, leaves[trees:]))


def _as_leaves(view: View, found: Sequence[Any]) -> tuple[Any, ...]:
    """A matrix, or None, and factors as a leaf has them."""
    matrix, *factors = found
    leaf = None if matrix is None else view.leaf(matrix)
    return (leaf, *map(view.unflat, factors))


class _Bucket(NamedTuple):
    """How the leaves of one bucket are worked on, as `map_matrices` says.

    Attributes:
      sizes: how many of the leaves each group has.
      views: of each leaf.
    """

    f: Callable[..., Any]
    made: Callable[..., Any] | None
    trees: int
    sizes: list[int]
    views: list[View]
    wide: bool
    chunk_bytes: int | None
    distribute: Distribute | None

    def __call__(
        self, leaves: list[tuple[jax.Array, ...]], wait: jax.Array | None
    ) -> tuple[list[Any], jax.Array | None]:
        """The results of each leaf, and what the next bucket waits for."""
        if self.distribute is not None or len(leaves) == 1:
            return self._stacked(leaves, None)[0], wait
        shape, dtype = (2, self.views[0].m, self.views[0].n), leaves[0][0].dtype
        budget = self.chunk_bytes or chunks.CPU_CHUNK_BYTES
        if chunks.chunk_size(shape, dtype, budget) == 2:
            return self._stacked(leaves, wait)
        if self.chunk_bytes:
            return self._in_turn(leaves, wait)
        # On a CPU one matrix after the other is faster than a stack. On a GPU every
        # choice of a leaf would wait for the host.
        return lax.platform_dependent(
            leaves, wait, cpu=self._in_turn, default=self._stacked
        )

    def _in_turn(
        self, leaves: list[tuple[jax.Array, ...]], wait: jax.Array | None
    ) -> tuple[list[Any], jax.Array]:
        """Leaf by leaf, each written over: nothing is stacked."""
        f, trees = self.f, self.trees
        if self.made is not None:
            f = partial(_after, self.made, f, trees)
        results: list[Any] = [None] * len(leaves)
        alike: dict[Any, list[int]] = {}
        for i, view in enumerate(self.views):
            alike.setdefault((view.stack, view.m, view.n), []).append(i)
        for (_, m, n), members in alike.items():
            views = [self.views[i] for i in members]
            found = chunks.one_by_one(
                partial(_turned, f) if self.wide and m > n else f,
                trees,
                [leaves[i] for i in members],
                [partial(_seen, view, trees) for view in views],
                [partial(_as_leaves, view) for view in views],
            )
            for i, result in zip(members, found, strict=True):
                results[i] = result
        return results, jnp.zeros((), bool) if wait is None else wait

    def _stacked(
        self, leaves: list[tuple[jax.Array, ...]], wait: jax.Array | None
    ) -> tuple[list[Any], jax.Array]:
        """The leaves of a group as one stack, and the stacks of groups as one."""
        f, trees, apart = self.f, self.trees, self.distribute is None
        items = [_seen(v, trees, x) for v, x in zip(self.views, leaves, strict=True)]
        # What is to be joined is turned on the way, not after.
        turned = [self.wide and apart and _is_small_and_tall(x[0]) for x in items]
        items = [
            tuple(x.mT for x in item) if turn else item
            for item, turn in zip(items, turned, strict=True)
        ]
        if self.made is not None and apart and len(items) == 1:
            f = partial(_after, self.made, f, trees)
        elif self.made is not None:
            # What is stacked or moved is what is worked on, and no more.
            works = [tuple(self.made(*item[:trees])) for item in items]
            items = [
                (*work, *item[trees:]) for work, item in zip(works, items, strict=True)
            ]
            trees = len(works[0])
        if wait is not None:
            # The stacks of one bucket make room for those of the next.
            items[0] = tuple(chunks.once(wait, x) for x in items[0])
        ends = [0, *itertools.accumulate(self.sizes)]
        groups = [items[a:b] for a, b in itertools.pairwise(ends)]
        # On a mesh what is cut into chunks is a device's part of a stack.
        f = partial(_joined, f, trees, self.chunk_bytes, self.wide)
        if self.distribute is not None:
            stacks = [(*self.views[a].stack, 1)[0] for a in ends[:-1]]
            f = self.distribute(f, trees, stacks)
        parts = f(*map(_merge, groups))
        results = []
        for count, part in zip(self.sizes, parts, strict=True):
            hidden = apart and count >= _MANY
            places = _hidden_places(count, items[0][0]) if hidden else range(count)
            results += [
                jax.tree.map(partial(_member, place, count), tuple(part))
                for place in places
            ]
        results = [
            (matrix.mT if turn and matrix is not None else matrix, *factors)
            for (matrix, *factors), turn in zip(results, turned, strict=True)
        ]
        found = [_as_leaves(v, x) for v, x in zip(self.views, results, strict=True)]
        return found, chunks.never(jax.tree.leaves(parts))


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
        return (chunks.in_chunks(turned, trees, chunk_bytes, groups[0]),)
    talls = [group[0].shape[1] > group[0].shape[2] for group in groups]
    turned = [
        [x.mT if tall else x for x in group]
        for group, tall in zip(groups, talls, strict=True)
    ]
    columns = [jnp.concatenate(column) for column in zip(*turned, strict=True)]
    ends = np.cumsum([group[0].shape[0] for group in groups])[:-1]
    matrix, *rest = chunks.in_chunks(f, trees, chunk_bytes, columns)
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
