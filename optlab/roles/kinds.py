"""What a leaf can be, and how a hidden matrix is seen as a stack of matrices."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from optlab.checks import is_integer


def _axes(name: str, axes: Any) -> tuple[int, ...]:
    """The axes as a tuple of integers; one integer is one axis."""
    several = axes if isinstance(axes, tuple | list) else (axes,)
    if not all(map(is_integer, several)):
        raise ValueError(f"{name} must be integers, axes of the leaf, got {axes!r}")
    return tuple(map(int, several))


@dataclass(frozen=True)
class Matrix:
    """A hidden matrix. Axes that are neither rows nor columns are stack axes.

    Attributes:
      rows: the axes of its inputs; one integer stands for `(integer,)`.
      cols: the axes of its outputs.
      spatial: those of the rows that are positions of a convolution kernel.

    Raises:
      ValueError: axes are neither an integer nor a tuple or list of integers.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    spatial: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("rows", "cols", "spatial"):
            object.__setattr__(self, name, _axes(name, getattr(self, name)))


@dataclass(frozen=True)
class Embedding:
    """An embedding table, `(..., vocabulary, width)`, or a head, the same turned round.

    Attributes:
      vocabulary_axis: which axis counts the entries: 0 of a table `(vocabulary,
        width)`, 1 of a head `(width, vocabulary)`.

    Raises:
      ValueError: the axis is no integer.
    """

    vocabulary_axis: int = 0

    def __post_init__(self):
        if not is_integer(self.vocabulary_axis):
            raise ValueError(
                f"vocabulary_axis must be an integer, got {self.vocabulary_axis!r}"
            )

    def width_axis(self, rank: int) -> int:
        """The axis of one entry's numbers: the last one that is not the vocabulary's.

        Args:
          rank: how many axes the leaf has, at least two.
        """
        return rank - 2 if self.vocabulary_axis % rank == rank - 1 else rank - 1


@dataclass(frozen=True)
class Vector:
    """A scalar, bias or scale; a leaf with several axes is a stack over its last."""


EMBEDDING = Embedding()
VECTOR = Vector()

Role = Matrix | Embedding | Vector
Rule = Callable[[Any, Any], Role]


def group(role: Role) -> str:
    """ "matrix", "embedding" or "vector"."""
    return type(role).__name__.lower()


class View(NamedTuple):
    """A leaf as a stack of matrices, `(stack..., m, n)`, and the way back."""

    order: tuple[int, ...]
    shape: tuple[int, ...]
    stack: tuple[int, ...]
    m: int
    n: int

    @classmethod
    def of(cls, role: Matrix, shape: Sequence[int]) -> "View":
        """The view of a leaf of that shape; stack axes come first, in their order."""
        rest = tuple(
            a for a in range(len(shape)) if a not in role.rows and a not in role.cols
        )
        order = rest + role.rows + role.cols

        def sizes(axes: Sequence[int]) -> tuple[int, ...]:
            return tuple(shape[a] for a in axes)

        return cls(
            order=order,
            shape=sizes(order),
            stack=sizes(rest),
            m=math.prod(sizes(role.rows)),
            n=math.prod(sizes(role.cols)),
        )

    def matrices(self, leaf: jax.Array) -> jax.Array:
        """The leaf as `(S, m, n)`."""
        return leaf.transpose(self.order).reshape(-1, self.m, self.n)

    def leaf(self, matrices: jax.Array) -> jax.Array:
        """`(S, m, n)` as the leaf again."""
        return matrices.reshape(self.shape).transpose(np.argsort(self.order))

    def flat(self, factor: jax.Array) -> jax.Array:
        """A factor `(stack..., x, y)` or scalar `(stack...)` with one stack axis."""
        return factor.reshape(-1, *factor.shape[len(self.stack) :])

    def unflat(self, factor: jax.Array) -> jax.Array:
        """The factor, or a slice of its stack, with its own stack axes again."""
        return factor.reshape(
            *(-1, *self.stack[1:])[: len(self.stack)], *factor.shape[1:]
        )
