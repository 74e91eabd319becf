"""The table of what happens to which leaf: role, transform, decay, state bytes."""

import math
from typing import Any, NamedTuple

import jax
import optax

from optlab.decay import leaf_decays
from optlab.roles import Matrix, Rule, View, path_name
from optlab.state import owning_parameter, state_leaves


class Row(NamedTuple):
    """One leaf of the parameters.

    Attributes:
      path: its path, keys joined by `/`.
      shape: its shape.
      role: "matrix 768x2048", "12 matrices 768x2048", "embedding" or "vector".
      optimizer: the transforms that keep state for it, such as "cosmos".
      decay: the weight of its decay, where that is a plain number; True where it is a
        schedule or not known, False where there is none, None where `tx` did not let
        itself be traced.
      state_bytes: bytes of that state.
    """

    path: str
    shape: tuple[int, ...]
    role: str
    optimizer: str
    decay: float | bool | None
    state_bytes: int


class Description(tuple[Row, ...]):
    """Rows that print as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        cells = [("path", "shape", "role", "optimizer", "decay", "state bytes")]
        for row in self:
            size = "x".join(map(str, row.shape)) or "scalar"
            words = {True: "yes", False: "no", None: "?"}
            number = type(row.decay) is float
            decay = f"{row.decay:g}" if number else words[row.decay]
            state = f"{row.state_bytes:,}"
            cells.append((row.path, size, row.role, row.optimizer, decay, state))
        total = f"{sum(row.state_bytes for row in self):,}"
        cells.append(("total", "", "", "", "", total))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for line in cells:
            *left, last = zip(line, widths, strict=True)
            text = [cell.ljust(width) for cell, width in left]
            lines.append("  ".join([*text, last[0].rjust(last[1])]))
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)


def describe(
    params: Any,
    rule: Rule,
    tx: optax.GradientTransformation | None = None,
    *,
    decay_mask: Any = None,
) -> Description:
    """Says for every leaf what its role is and, given `tx`, what it is kept for it.

    Args:
      params: tree of arrays or of `jax.ShapeDtypeStruct`.
      rule: what decides the roles, such as `optlab.default_roles()`.
      tx: the optimizer; without it the last three columns are empty.
      decay_mask: function of the parameters to a tree of booleans, to put in the place
        of what `tx` itself does.

    Returns:
      One row a leaf; `str()` of it is the table.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if decay_mask is not None:
        decays = [bool(x) for x in jax.tree.leaves(decay_mask(params))]
    elif tx is None:
        decays = [False] * len(leaves)
    else:
        decays = leaf_decays(tx, params)
    state = [] if tx is None else state_leaves(jax.eval_shape(tx.init, params))
    owners: dict[tuple[Any, ...], list[str]] = {tuple(p): [] for p, _ in leaves}
    sizes = dict.fromkeys(owners, 0)
    for path, transform, _, leaf in state:
        parameter = owning_parameter(path, owners)
        if parameter is not None:
            sizes[parameter] += math.prod(leaf.shape) * leaf.dtype.itemsize
            if transform not in owners[parameter]:
                owners[parameter].append(transform)
    return Description(
        Row(
            path=path_name(path),
            shape=tuple(leaf.shape),
            role=_role(rule(path, leaf), leaf),
            optimizer=", ".join(owners[tuple(path)]),
            decay=decay,
            state_bytes=sizes[tuple(path)],
        )
        for (path, leaf), decay in zip(leaves, decays, strict=True)
    )


def _role(role: Any, leaf: Any) -> str:
    if not isinstance(role, Matrix):
        return role.value
    view = View.of(role, leaf.shape)
    count = math.prod(view.stack)
    size = f"{view.m}x{view.n}"
    return f"{count} matrices {size}" if view.stack else f"matrix {size}"
