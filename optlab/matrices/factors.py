"""Factors of matrices: how a mesh decides where they are kept, and work with them.

A factor lives where its matrix is worked on. A mesh that divides the stack of a leaf
cuts the leaf's factors over it. Of all other leaves those that are seen alike share a
bucket, one array that is padded to a number of matrices which the mesh divides.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optlab.dtypes import at_least_float32
from optlab.matrices.buckets import Distribute, map_matrices
from optlab.roles import Matrix, View
from optlab.state import Bucket, Stacks, fill, without


def plan_of(params: Any, views: Any, distribute: Any) -> tuple[Bucket, ...]:
    """The buckets of factors, from shapes alone.

    Args:
      params: tree of arrays or their shapes.
      views: what `tree_views` made of it.
      distribute: what spreads the work. Where its number of devices is not known,
        there are no buckets.

    Returns:
      One bucket for all leaves of one stack, one shape and one dtype; none for leaves
      whose first stack axis the devices divide.
    """
    size = getattr(distribute, "size", None)
    lives_by_stack = getattr(distribute, "lives_by_stack", None)
    if size is None or lives_by_stack is None:
        return ()
    groups: dict[Any, list[Any]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    flat = jax.tree.leaves(views, is_leaf=_is_view)
    for (path, leaf), view in zip(leaves, flat, strict=True):
        if not lives_by_stack((*view.stack, 1)[0]):
            alike = (view.stack, view.m, view.n, at_least_float32(leaf.dtype))
            groups.setdefault(alike, []).append(tuple(path))
    plan = (Bucket(tuple(paths), stack, 0) for (stack, *_), paths in groups.items())
    return tuple(x._replace(slices=-(-x.matrices // size) * size) for x in plan)


def zero_factors(
    shape: Callable[[View], tuple[int, int]],
    params: Any,
    views: Any,
    distribute: Distribute | None,
) -> Any:
    """A factor of zeros for every matrix, kept as `plan_of` says.

    Args:
      shape: of a matrix's factor, from its view.
      params: tree of arrays or their shapes.
      views: what `tree_views` made of it.
      distribute: what spreads the work.

    Returns:
      The tree of arrays `(stack..., x, y)`, or a `Stacks` where there are buckets.
    """
    tree = jax.tree.map(
        lambda p, v: jax.ShapeDtypeStruct(
            (*v.stack, *shape(v)), at_least_float32(p.dtype)
        ),
        *(params, views),
    )
    plan = plan_of(params, views, distribute)
    shapes = jax.eval_shape(lambda tree: Stacks.of(tree, plan), tree)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def map_factors(
    f: Callable[..., Any],
    views: Any,
    trees: Sequence[Any],
    factors: Sequence[Any],
    *,
    made: Callable[..., tuple[jax.Array, ...]] | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Any, ...]:
    """:func:`map_matrices` with factors that may be kept by bucket.

    A bucket is one large leaf there, the matrices of its members and padding. Members
    that the trees lack are worked on as zeros, and their factors stay.

    Args:
      f: `f(*matrices, *factors) -> (matrix, *factors)`.
      views: what `tree_views` made of the first tree.
      trees: trees of leaves with those views.
      factors: what `zero_factors` made, all with one plan.
      made: makes what `f` gets for matrices of the trees' leaves.
      distribute: what computes `f` apart.
      chunk_bytes: of the matrices of a chunk, see :func:`map_matrices`.

    Returns:
      The tree of the resulting matrices as leaves, then those of the factors, kept as
      they came.
    """
    apply = partial(
        map_matrices, made=made, distribute=distribute, chunk_bytes=chunk_bytes
    )
    first = factors[0]
    if not isinstance(first, Stacks):
        return apply(f, views, trees, factors)
    flat = dict(_by_path(views, _is_view))
    plan = [x for x in first.plan if any(member in flat for member in x.members)]
    places = [first.plan.index(bucket) for bucket in plan]

    def with_buckets(tree: Any) -> tuple[Any, list[jax.Array]]:
        own = dict(_by_path(tree))
        return without(tree, first.plan), [_join(x, flat, own) for x in plan]

    (directions, joined), *results = apply(
        f,
        (without(views, first.plan, _is_view), [_view(x, flat) for x in plan]),
        list(map(with_buckets, trees)),
        [(x.leaves, [x.buckets[i] for i in places]) for x in factors],
    )
    found = {
        member: flat[member].leaf(part)
        for bucket, matrices in zip(plan, joined, strict=True)
        for member, part in zip(bucket.members, bucket.split(matrices), strict=True)
        if member in flat
    }
    kept = []
    for old, (leaves, arrays) in zip(factors, results, strict=True):
        buckets = list(old.buckets)
        for i, bucket, array in zip(places, plan, arrays, strict=True):
            buckets[i] = _where_present(bucket, flat, array, buckets[i], distribute)
        kept.append(Stacks(leaves, buckets, first.plan))
    return fill(directions, found), *kept


def _is_view(x: Any) -> bool:
    return isinstance(x, View)


def _by_path(tree: Any, is_leaf: Any = None) -> list[tuple[Any, Any]]:
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(tuple(path), x) for path, x in found]


def _view(bucket: Bucket, views: dict[Any, View]) -> View:
    """A bucket's matrices as one leaf."""
    member = next(views[x] for x in bucket.members if x in views)
    shape = (bucket.slices, member.m, member.n)
    return View.of(Matrix(rows=(1,), cols=(2,)), shape)


def _join(bucket: Bucket, views: dict[Any, View], leaves: dict[Any, Any]) -> jax.Array:
    """The matrices of a bucket's members, zeros for those that are absent."""
    found = {x: views[x].matrices(leaves[x]) for x in bucket.members if x in views}
    absent = jnp.zeros_like(next(iter(found.values())))
    return bucket.join([found.get(x, absent) for x in bucket.members])


def _where_present(
    bucket: Bucket, views: dict[Any, View], new: jax.Array, old: jax.Array, spread: Any
) -> jax.Array:
    """The new factors of the members that were worked on, the old ones of others."""
    present = np.array([x in views for x in bucket.members])
    if present.all():
        return new
    mask = jnp.asarray(np.resize(present, (bucket.slices, 1, 1)))
    if new.shape[0] < bucket.slices:  # a device's share, inside `jax.shard_map`
        start = lax.axis_index(spread.axes) * new.shape[0]
        mask = lax.dynamic_slice_in_dim(mask, start, new.shape[0])
    return jnp.where(mask, new, old)
