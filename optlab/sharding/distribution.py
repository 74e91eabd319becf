"""The two ways to spread matrix work over devices: `over_mesh` and `over_axis`.

A matrix method works on whole matrices, while its parameters lie cut up over a mesh.
`over_mesh` turns a function of a stack of matrices into one whose stack is split over
the mesh: each device gets whole matrices, works on those alone, and the results go
back. What moves is the stack, once in and once out, and nothing inside any loop.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.matrices.buckets import Distribute


def mesh_size(mesh: Mesh, axes: str | Sequence[str]) -> int:
    """How many devices lie along one axis of a mesh, or along several.

    Raises:
      ValueError: the mesh has no such axis.
    """
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    for name in names:
        if name not in mesh.shape:
            raise ValueError(f"the mesh has no axis {name!r}: {dict(mesh.shape)}")
    return math.prod(mesh.shape[name] for name in names)


def matrix_axis(shape: Sequence[int], size: int) -> int | None:
    """Which axis of matrices `(..., m, n)` is cut: the rows if they divide, or n."""
    rank = len(shape)
    return next(
        (a for a in (rank - 2, rank - 1) if a >= 0 and shape[a] % size == 0), None
    )


class OverMesh:
    """Made by `over_mesh`; `axes` are the mesh's, `size` their devices."""

    def __init__(self, mesh: Mesh, axes: tuple[str, ...]):
        # Transforms work under Auto axes, whatever the arrays come on.
        kinds = (AxisType.Auto,) * len(mesh.axis_names)
        self.mesh = mesh.update(axis_types=kinds)
        self.axes, self.size = axes, mesh_size(mesh, axes)

    def __call__(
        self, f: Callable[..., Any], matrices: int, stacks: Sequence[int]
    ) -> Callable[..., Any]:
        """`f` with its stacks split over the mesh."""
        apart = jax.shard_map(
            f,
            mesh=self.mesh,
            in_specs=P(self.axes),
            out_specs=P(self.axes),
            check_vma=False,
        )
        rows, stack = P(None, self.axes), P(self.axes)

        def spread(*groups: Any) -> Any:
            counts = list(map(_stack_size, groups))
            inside = [
                self._exchange(_pad(g, -n % self.size), matrices, length, rows, stack)
                for g, n, length in zip(groups, counts, stacks, strict=True)
            ]
            results = apart(*inside)
            return tuple(
                _cut(self._exchange(r, 1, length, stack, rows), n)
                for r, n, length in zip(results, counts, stacks, strict=True)
            )

        return spread

    def lives_by_stack(self, length: int) -> bool:
        """Whether factors with that leading axis lie where they are worked on."""
        return length % self.size == 0

    def factor_spec(self, shape: Sequence[int], stacked: bool) -> P:
        """Where a factor `(stack..., x, y)` is taken from and left."""
        if stacked and self.lives_by_stack(shape[0]):
            return P(self.axes)
        cut = matrix_axis(shape[-2:], self.size) if len(shape) > 1 else None
        if cut is None:
            return P()
        return P(*(None,) * (len(shape) - 2 + cut), self.axes)

    def _exchange(
        self, arrays: Sequence[Any], matrices: int, length: int, before: P, after: P
    ) -> tuple[Any, ...]:
        """Stacks cut by rows as stacks of whole matrices, or back: one move for all.

        Both sides are pinned, so that momenta are not dragged along. Factors that live
        by stack slice stay, and what no device can have a part of is everywhere.
        """
        results = list(arrays)
        packs: dict[Any, list[int]] = {}
        cuts: dict[int, int] = {}
        for i, x in enumerate(arrays):
            if x is None:
                continue
            resident = x.ndim > 1 and self.lives_by_stack(length)
            moves = i < matrices or not resident
            axis = matrix_axis(x.shape[1:], self.size) if moves else None
            if axis is not None:
                cuts[i] = axis + 1
                packs.setdefault(x.dtype, []).append(i)
            elif not resident:
                results[i] = self._pin(x, P())
        for places in packs.values():
            parts = [_chunks(arrays[i], cuts[i], self.size) for i in places]
            ends = np.cumsum([part.shape[-1] for part in parts])[:-1]
            packed = self._pin(jnp.concatenate(parts, -1), before)
            moved = jnp.split(self._pin(packed, after), ends, -1)
            for i, part in zip(places, moved, strict=True):
                results[i] = _unchunk(part, arrays[i].shape, cuts[i])
        return tuple(results)

    def _pin(self, x: jax.Array, spec: P) -> jax.Array:
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def over_mesh(mesh: Mesh, axes: str | Sequence[str]) -> Distribute:
    """Spreads matrix work over the axes of a mesh, under `jax.jit`.

    Each device gets whole matrices, `1/size` of every stack, padded with zeros where
    it does not divide. Over axes that are not named, the work is repeated: leave out
    `slice`, and no matrix crosses a pod.

    Args:
      mesh: from `make_mesh`.
      axes: one name, or several that are split over together.

    Returns:
      What the matrix methods take as `distribute`.

    Raises:
      ValueError: the mesh has no such axis.
    """
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    return OverMesh(mesh, names)


class OverAxis:
    """Made by `over_axis`; `axes` name the axis, `size` is None where not told."""

    def __init__(self, axes: str | tuple[str, ...], size: int | None):
        self.axes, self.size = axes, size

    def __call__(
        self, f: Callable[..., Any], matrices: int, stacks: Sequence[int]
    ) -> Callable[..., Any]:
        """`f` on this device's share of its stacks, its results gathered."""
        del stacks

        def spread(*groups: Any) -> Any:
            size, index = lax.axis_size(self.axes), lax.axis_index(self.axes)
            counts = list(map(_stack_size, groups))
            shares = [-(-n // size) for n in counts]

            def own(x: jax.Array, share: int) -> jax.Array:
                return lax.dynamic_slice_in_dim(x, index * share, share)

            def takes(group: Any, n: int, share: int) -> Any:
                # Factors that live by stack slice are this device's share already.
                return tuple(
                    own(_pad(x, share * size - n), share) if x.shape[0] == n else x
                    for x in group
                )

            results = f(*map(takes, groups, counts, shares))
            # A result after the matrix is a new factor, and stays where the old one is.
            stay = [
                {i + 1 for i, x in enumerate(group[matrices:]) if x.shape[0] < n}
                for group, n in zip(groups, counts, strict=True)
            ]
            away = [
                {i: x for i, x in enumerate(result) if i not in kept}
                for result, kept in zip(results, stay, strict=True)
            ]
            return tuple(
                tuple((dict(enumerate(result)) | _cut(whole, n)).values())
                for result, whole, n in zip(
                    results, _gather(away, self.axes), counts, strict=True
                )
            )

        return spread

    def lives_by_stack(self, length: int) -> bool:
        """Whether factors with that leading axis lie where they are worked on."""
        return self.size is not None and length % self.size == 0

    def factor_spec(self, shape: Sequence[int], stacked: bool) -> P:
        """Where a factor `(stack..., x, y)` is taken from and left."""
        here = stacked and self.lives_by_stack(shape[0])
        return P(self.axes) if here else P()


def over_axis(name: str | tuple[str, ...], size: int | None = None) -> Distribute:
    """Spreads matrix work over a named axis, inside `jax.pmap` or `jax.shard_map`.

    For parameters that are the same on all devices: each takes its share of every
    stack, and the results are gathered, all of a bucket at once. Factors that are the
    same everywhere are gathered with them. With `size` they can stay where they are
    worked on, by bucket where it does not divide their stack: lay the state out by
    `state_specs` in `shard_map`'s specs.

    Args:
      name: the axis, or several.
      size: its devices.

    Returns:
      What the matrix methods take as `distribute`.
    """
    return OverAxis(name, size)


def _gather(tree: Any, axes: str | tuple[str, ...]) -> Any:
    """Every array `(share, ...)` of all devices, as `(devices share, ...)`: one move
    a dtype.
    """
    leaves, treedef = jax.tree.flatten(tree)
    whole = list(leaves)
    for dtype in {x.dtype: None for x in leaves}:
        places = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        packed = jnp.concatenate([leaves[i].reshape(-1) for i in places])
        moved = lax.all_gather(packed, axes)
        ends = np.cumsum([leaves[i].size for i in places])[:-1]
        for i, part in zip(places, jnp.split(moved, ends, -1), strict=True):
            whole[i] = part.reshape(-1, *leaves[i].shape[1:])
    return jax.tree.unflatten(treedef, whole)


def _stack_size(group: Any) -> int:
    return jax.tree.leaves(group)[0].shape[0]


def _cut(group: Any, count: int) -> Any:
    """The first `count` slices of each stack."""
    return jax.tree.map(lambda x: x[:count], group)


def _pad(group: Any, count: int) -> Any:
    """Adds that many zero slices at the end of each stack."""
    if not count:
        return group
    return jax.tree.map(
        lambda x: jnp.pad(x, [(0, count)] + [(0, 0)] * (x.ndim - 1)), group
    )


def _chunks(x: jax.Array, axis: int, size: int) -> jax.Array:
    """`(S, m, n)` as `(S, size, -1)`, with a part of that axis in each."""
    split = x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 1).reshape(x.shape[0], size, -1)


def _unchunk(x: jax.Array, shape: Sequence[int], axis: int) -> jax.Array:
    """What `_chunks` made, in its own shape again."""
    part = (*shape[1:axis], shape[axis] // x.shape[1], *shape[axis + 1 :])
    split = x.reshape(*x.shape[:2], *part)
    return jnp.moveaxis(split, 1, axis).reshape(x.shape[0], *shape[1:])
