"""Which leaf is a hidden matrix, an embedding or a vector, and how a matrix is seen.

A rule `rule(path, leaf)` returns the role of a leaf: `Matrix(rows, cols)`, `EMBEDDING`
or `VECTOR`. It asks the path and the shape and nothing else, so it gives the same
answer under `optax.partition` and `optax.masked`. Axes of a matrix that are neither
rows nor columns are stack axes (scanned layers, experts): each slice is a matrix of
its own, in its state too.
"""

import enum
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import numpy as np
import optax

from optlab import checks

_LOG = logging.getLogger("optlab")


class Matrix(NamedTuple):
    """A hidden matrix: the axes that are its rows (inputs), and its columns."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]


class Role(enum.Enum):
    """The roles that need no axes."""

    EMBEDDING = "embedding"
    VECTOR = "vector"


EMBEDDING = Role.EMBEDDING
VECTOR = Role.VECTOR

Rule = Callable[[Any, Any], Matrix | Role]

DEFAULT_EMBEDDINGS = (r"embed", r"(^|/|_)(wte|wpe|head|logits|vocab)(/|$)")
_VECTORS = r"(^|/|_)(bias|scale|beta|gamma)(/value)?$"
_ATTENTION_IN = r"(^|/|_)(q|k|v|query|key|value|qkv)(_?proj)?(/|$)"
_ATTENTION_OUT = r"(^|/|_)(o|out)(_?proj)?(/|$)"
_CONVOLUTION = r"conv"


def path_name(path: Any) -> str:
    """A key path as rules and messages write it: `layers/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def default_roles(
    stacked: Sequence[str] = (), embeddings: Sequence[str] = DEFAULT_EMBEDDINGS
) -> Rule:
    """The usual rule: names decide embeddings and stacks, then the rank decides.

    Each pattern of `stacked` that is found in a path takes off one leading axis
    before the rank is looked at: `("layers/", "experts/")` for a scanned mixture of
    experts. Then rank 0 and 1, and leaves named bias or scale, are vectors; names of
    `embeddings` are embeddings and heads; rank 2 is a dense kernel `(in, out)`. From
    rank 3 on a query, key or value kernel is `(in, heads * width)`, an attention
    output `(heads * width, in)`, and every other kernel a convolution,
    `(spatial * in, out)`.

    Args:
      stacked: regular expressions, searched in the path with `/` between its keys.
      embeddings: regular expressions for embedding tables and heads.

    Returns:
      `rule(path, leaf)`; `leaf` is anything that has a shape.

    Raises:
      ValueError: a pattern is no regular expression (now), or a leaf has fewer axes
        than `stacked` takes off (when the rule is asked).
    """
    stacks = [_pattern("stacked", p) for p in stacked]
    tables = [_pattern("embeddings", p) for p in embeddings]

    def rule(path: Any, leaf: Any) -> Matrix | Role:
        name = path_name(path)
        skip = sum(bool(p.search(name)) for p in stacks)
        axes = tuple(range(skip, len(leaf.shape)))
        if skip > len(leaf.shape):
            raise ValueError(
                f"stacked takes {skip} axes off {name!r} of shape {leaf.shape}"
            )
        if len(axes) < 2 or re.search(_VECTORS, name):
            return VECTOR
        if any(p.search(name) for p in tables):
            return EMBEDDING
        if len(axes) == 3 and re.search(_ATTENTION_IN, name):
            return Matrix(axes[:1], axes[1:])
        if len(axes) == 3 and not re.search(_ATTENTION_OUT, name):
            _warn_unless_convolution(name, tuple(leaf.shape))
        return Matrix(axes[:-1], axes[-1:])

    return rule


def _pattern(argument: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument}: {pattern!r} is no pattern: {error}") from None


def _warn_unless_convolution(name: str, shape: tuple[int, ...]) -> None:
    if not re.search(_CONVOLUTION, name) and (name, shape) not in _warned:
        _warned.add((name, shape))
        _LOG.warning(
            "%s of shape %s is taken for a convolution kernel; if its first axis is "
            "a stack of layers, name it in default_roles(stacked=...)",
            *(name, shape),
        )


_warned: set[tuple[str, tuple[int, ...]]] = set()


def as_rule(roles: Any) -> Rule:
    """Makes a rule of `None`, a rule, or a tree of `optax.contrib` dimension numbers.

    In such a tree a `MuonDimensionNumbers` stands for a matrix, `None` for a vector;
    it may be a prefix of the parameters' tree.
    """
    if roles is None:
        return default_roles()
    if callable(roles):
        return cast(Rule, roles)
    dims = optax.contrib.MuonDimensionNumbers
    leaves = jax.tree_util.tree_flatten_with_path(
        roles, is_leaf=lambda x: x is None or isinstance(x, dims)
    )[0]

    def rule(path: Any, leaf: Any) -> Matrix | Role:
        for prefix, spec in leaves:
            if tuple(path[: len(prefix)]) == tuple(prefix):
                if spec is None:
                    return VECTOR
                return Matrix(
                    _axes(spec.reduction_axis, leaf), _axes(spec.output_axis, leaf)
                )
        raise ValueError(f"roles says nothing about {path_name(path)!r}")

    return rule


def _axes(axes: int | Sequence[int], leaf: Any) -> tuple[int, ...]:
    rank = len(leaf.shape)
    return tuple(a % rank for a in ([axes] if isinstance(axes, int) else axes))


def tree_roles(tree: Any, rule: Rule) -> Any:
    """The tree of roles of a tree of arrays."""
    return jax.tree_util.tree_map_with_path(rule, tree)


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


def tree_views(tree: Any, rule: Rule, owner: str) -> Any:
    """The tree of views of a tree that holds nothing but hidden matrices.

    Raises:
      ValueError: a leaf is no matrix. The message names `owner` and the leaf.
    """

    def view(path: Any, leaf: Any) -> View:
        role = rule(path, leaf)
        if not isinstance(role, Matrix):
            raise ValueError(
                f"{owner}: {path_name(path)!r} of shape {leaf.shape} is no hidden "
                "matrix; optlab.by_role gives such leaves to another transform"
            )
        return View.of(role, leaf.shape)

    return jax.tree_util.tree_map_with_path(view, tree)


def check_layout(tree: Any) -> None:
    """Raises `ValueError` if a leaf is cut up over an axis of a mesh that is not Auto.

    The types of arrays tell that, under `jax.jit` too; jax's own errors come later.
    """
    for leaf in jax.tree.leaves(tree):
        layout = jax.typeof(leaf).sharding
        checks.auto_axes(layout.mesh, layout.spec)


class Distribute(Protocol):
    """Turns a function of groups of stacks into the same function, computed apart."""

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
