"""The loss along the line between two checkpoints, whole and one layer at a time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inside.run import LookedAt
from optlab.matrices.norms import tree_layers
from optlab.roles import as_rule, leaf_name


class Line:
    """The line `(1 - t) a + t b` between two sets of weights, and parts of it.

    A layer is a slice of all leaves that are stacked under the same name, such as
    `layers/3`; leaves that are not stacked are a layer by the first part of their path.

    Attributes:
      layers: their names.
    """

    def __init__(self, run: LookedAt, a: Any, b: Any, batch: Any):
        """Compiles nothing.

        Args:
          run: whose training loss is taken.
          a: weights at `t = 0`, which the other layers keep.
          b: weights of the same shapes at `t = 1`.
          batch: the examples, over the mesh.
        """
        self._ends = a, b, batch
        paths = jax.tree_util.tree_leaves_with_path(a)
        roles = as_rule(run.program.task.roles)
        self._places = [
            _place(leaf_name(path), leaf.shape, layer.axes)
            for (path, leaf), layer in zip(
                paths, tree_layers(a, roles, 1.0), strict=True
            )
        ]
        names = [
            f"{n}/{i}" if d else n for n, d, k, _ in self._places for i in range(k)
        ]
        self.layers = list(dict.fromkeys(names))
        treedef = jax.tree.structure(a)

        def along(a, b, batch, shares):
            def at(shares):
                tree = treedef.unflatten(shares)
                mixed = jax.tree.map(lambda x, y, t: x + t * (y - x), a, b, tree)
                return run.loss(
                    jax.tree.map(lambda x, p: x.astype(p.dtype), mixed, a), batch
                )

            return jax.lax.map(at, shares)

        self._along: Callable = jax.jit(along)

    def losses(self, points: int, layer: str | None = None) -> list[float]:
        """The loss at evenly spaced points from `t = 0` to 1.

        Args:
          points: how many, both ends included.
          layer: the only one that moves; None: all of them.
        """
        t = np.linspace(0, 1, points, dtype=np.float32)
        shares = []
        for name, stacked, count, shape in self._places:
            names = [f"{name}/{i}" if stacked else name for i in range(count)]
            moves = np.asarray([layer in (None, own) for own in names], np.float32)
            shares.append(
                jnp.asarray(t.reshape(-1, *(1,) * len(shape)) * moves.reshape(shape))
            )
        return [float(x) for x in self._along(*self._ends, shares)]


def barrier(losses: Iterable[float]) -> float:
    """How far losses rise above the straight line between their ends; 0 at least."""
    losses = np.asarray(list(losses), np.float64)
    t = np.linspace(0, 1, len(losses))
    return float(np.max(losses - ((1 - t) * losses[0] + t * losses[-1])))


def _place(
    name: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[str, bool, int, tuple[int, ...]]:
    """Layer, whether it is one of a stack, of how many, and the shape of the shares."""
    first = name.partition("/")[0]
    axis = next((i for i in range(len(shape)) if i not in axes), None)
    ones = [1] * len(shape)
    if axis is None:
        return first, False, 1, tuple(ones)
    ones[axis] = shape[axis]
    return first, True, shape[axis], tuple(ones)
