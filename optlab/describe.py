"""The table of what happens to which leaf: role, transform, decay, state bytes."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import optax

from optlab.checks import is_transform
from optlab.decay import leaf_decays
from optlab.roles import Matrix, Rule, View, as_rule, doubts, group, leaf_name
from optlab.state import make_abstract_state, owning_parameter, state_leaves


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
    """Rows that print as a table.

    Attributes:
      doubts: what the names and shapes leave open, by path or by pattern.
    """

    doubts: Mapping[str, str]

    def __new__(cls, rows: Iterable[Row], doubts: Mapping[str, str] | None = None):
        """The rows, and what is doubtful in some of them."""
        made = super().__new__(cls, rows)
        made.doubts = dict(doubts or {})
        return made

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
        # What to do stands below the table, once for all leaves that it is said of.
        told = {k: re.split(r"[;:] (?=if )", v) for k, v in self.doubts.items()}
        if told:
            notes = ["note", *(told.get(row.path, [""])[0] for row in self), ""]
            lines = [f"{x}  {y}".rstrip() for x, y in zip(lines, notes, strict=True)]
        lines.insert(1, "-" * max(map(len, lines)))
        paths = {row.path for row in self}
        lines += [f"{k}: {v}" for k, v in self.doubts.items() if k not in paths]
        advice = dict.fromkeys(
            f"{said}: {todo[0]}"
            for k, (said, *todo) in told.items()
            if k in paths and todo
        )
        lines += advice
        return "\n".join(lines)


def describe(
    params: Any,
    tx: optax.GradientTransformation | Rule | None = None,
    rule: Rule | optax.GradientTransformation | None = None,
    *,
    decay_mask: Any = None,
) -> Description:
    """Says for every leaf what its role is and, given `tx`, what is kept for it.

    Example:
      >>> import jax.numpy as jnp, optlab
      >>> params = {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}
      >>> print(optlab.describe(params, optlab.cosmos(2e-3, rank=2))[1].role)
      matrix 6x4

    Args:
      params: tree of arrays or of `jax.ShapeDtypeStruct`.
      tx: the optimizer; without it the last three columns are empty. The roles are
        those that it works with, so the table cannot say another thing.
      rule: decides the roles of leaves that `tx` does not ask about, such as
        `optlab.default_roles()`. It may stand before `tx`.
      decay_mask: tree of booleans, or a function of the parameters that gives one, to
        put in the place of what `tx` itself does.

    Returns:
      One row a leaf; `str()` of it is the table.

    Raises:
      ValueError: `tx` works with other roles than `rule` says, or the optimizer stands
        in the place of `params`.
    """
    if is_transform(params):
        raise ValueError("params: an optimizer; the order is describe(params, tx)")
    if is_transform(rule) or (tx is not None and not is_transform(tx)):
        tx, rule = rule, tx
    transform = cast(optax.GradientTransformation | None, tx)
    state, said = [], {}
    if transform is not None:
        abstract, said = make_abstract_state(transform, params)
        state = state_leaves(abstract)
    asked = said.get("roles", {})
    default = as_rule(rule)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    roles = {}
    for path, leaf in leaves:
        name = leaf_name(path)
        works = asked.get(name)
        roles[name] = default(path, leaf) if rule or works is None else works
        if works not in (None, roles[name]):
            raise ValueError(
                f"rule: says {roles[name]} of {name!r}, and the optimizer works with "
                f"{works}; leave the rule out"
            )
    if decay_mask is not None:
        mask = decay_mask(params) if callable(decay_mask) else decay_mask
        decays = [bool(x) for x in jax.tree.leaves(mask)]
    elif transform is None:
        decays = [False] * len(leaves)
    else:
        decays = leaf_decays(transform, params)
    owners: dict[tuple[Any, ...], list[str]] = {tuple(p): [] for p, _ in leaves}
    sizes = dict.fromkeys(owners, 0)
    for leaf in state:
        size = math.prod(leaf.value.shape) * leaf.value.dtype.itemsize
        for i, (path, _) in enumerate(parts := leaf.parts):
            parameter = owning_parameter(path, owners)
            if parameter is not None:
                # Of a bucket each has an equal share, and padding is a part of it.
                sizes[parameter] += size * (i + 1) // len(parts)
                sizes[parameter] -= size * i // len(parts)
                if leaf.transform not in owners[parameter]:
                    owners[parameter].append(leaf.transform)
    rows = (
        Row(
            path=leaf_name(path),
            shape=tuple(leaf.shape),
            role=_role(roles[leaf_name(path)], leaf),
            optimizer=", ".join(owners[tuple(path)]),
            decay=decay,
            state_bytes=sizes[tuple(path)],
        )
        for (path, leaf), decay in zip(leaves, decays, strict=True)
    )
    rules = list(said.get("rules", {}).values()) if rule is None else []
    notes = [doubts(params, each) for each in rules or [default]]
    return Description(rows, {k: text for n in notes for k, (_, text) in n.items()})


def _role(role: Any, leaf: Any) -> str:
    if not isinstance(role, Matrix):
        return group(role)
    view = View.of(role, leaf.shape)
    count = math.prod(view.stack)
    size = f"{view.m}x{view.n}"
    return f"{count} matrices {size}" if view.stack else f"matrix {size}"
