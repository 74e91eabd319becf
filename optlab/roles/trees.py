"""Rules over whole trees: the roles of all leaves, and what is doubtful in them."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import optax

from optlab.roles.default import DefaultRoles, default_roles, warn_once
from optlab.roles.kinds import (
    VECTOR,
    Embedding,
    Matrix,
    Role,
    Rule,
    Vector,
    View,
    group,
)
from optlab.roles.names import leaf_name
from optlab.said import listening, note

_ROLES = (Matrix, Embedding, Vector)


def as_rule(roles: Any) -> Rule:
    """Makes a rule of what `roles=` takes.

    Args:
      roles: None for :func:`default_roles`, a rule, or a tree that is a prefix of the
        parameters' and holds `Matrix`, `Embedding`, `VECTOR`,
        `optax.contrib.MuonDimensionNumbers` or None. None asks the default rule what
        the leaf is, if it is no hidden matrix.

    Returns:
      `rule(path, leaf)`.

    Raises:
      ValueError: `roles` is none of these; a leaf is not in the tree (when asked).
    """
    rule: Rule
    if roles is None:
        rule = default_roles()
    elif roles is default_roles:
        raise ValueError("roles: call it, optlab.default_roles()")
    elif isinstance(roles, type):
        raise ValueError(
            f"roles: {roles.__name__} is a class; allowed are a rule, a tree of roles "
            "and None"
        )
    else:
        rule = cast(Rule, roles) if callable(roles) else _tree_rule(roles)

    def asking(path: Any, leaf: Any) -> Role:
        role = _checked(rule(path, leaf), path, leaf)
        note("roles", {leaf_name(path): role})
        note("rules", {id(rule): rule})
        return role

    return asking


def _checked(role: Any, path: Any, leaf: Any) -> Role:
    """A rule's answer with its axes counted from the front.

    Raises:
      ValueError: it is no role, or its axes are not those of the leaf.
    """
    if isinstance(role, Vector):
        return role
    shape = tuple(leaf.shape)
    of = f"roles: {leaf_name(path)!r} of shape {shape} is {role!r}"
    if not isinstance(role, Matrix | Embedding):
        raise ValueError(f"{of}; allowed are Matrix, Embedding and VECTOR")
    rank = len(shape)
    if isinstance(role, Embedding) and rank < 2:
        return role  # A head's bias, for a rule that goes by the head's name alone.
    if isinstance(role, Matrix):
        axes = (*role.rows, *role.cols)
    else:
        axes = (role.vocabulary_axis,)
    if rank < 2 or any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"{of}, and the leaf has {rank} axes")
    if isinstance(role, Embedding):
        return role
    rows, cols, spatial = (
        tuple(axis % rank for axis in each)
        for each in (role.rows, role.cols, role.spatial)
    )
    if not rows or not cols or len({*rows, *cols}) < len(axes):
        raise ValueError(f"{of}; rows and columns need axes, and each another")
    return Matrix(rows, cols, spatial)


def _tree_rule(roles: Any) -> Rule:
    dims = optax.contrib.MuonDimensionNumbers
    kinds = (*_ROLES, dims)
    entries = jax.tree_util.tree_flatten_with_path(
        roles, is_leaf=lambda x: x is None or isinstance(x, kinds)
    )[0]
    for path, spec in entries:
        if not isinstance(spec, (*kinds, type(None))):
            raise ValueError(
                f"roles: {leaf_name(path) or 'the tree'!r} is {spec!r}; allowed are "
                "Matrix, Embedding, VECTOR, MuonDimensionNumbers and None"
            )
    default = default_roles()

    def rule(path: Any, leaf: Any) -> Role:
        for prefix, spec in entries:
            if tuple(path[: len(prefix)]) != tuple(prefix):
                continue
            if spec is None:
                role, _ = default.explain(path, leaf)
                return VECTOR if isinstance(role, Matrix) else role
            if isinstance(spec, dims):
                return Matrix(
                    _axes(spec.reduction_axis, leaf), _axes(spec.output_axis, leaf)
                )
            return cast(Role, spec)
        raise ValueError(f"roles says nothing about {leaf_name(path)!r}")

    return rule


def _axes(axes: int | Sequence[int], leaf: Any) -> tuple[int, ...]:
    rank = len(leaf.shape)
    return tuple(a % rank for a in ([axes] if isinstance(axes, int) else axes))


def tree_roles(tree: Any, rule: Rule) -> Any:
    """The tree of roles of a tree of arrays."""
    return jax.tree_util.tree_map_with_path(rule, tree)


def tree_groups(tree: Any, rule: Rule) -> Any:
    """The tree of "matrix", "embedding" and "vector" of a whole tree of parameters.

    What is doubtful in the tree is logged, once in a process.

    Raises:
      ValueError: leaves of one stack disagree about its size.
    """
    for name, (shape, doubt) in doubts(tree, rule).items():
        warn_once(name, shape, doubt)
    return jax.tree.map(group, tree_roles(tree, rule))


def doubts(tree: Any, rule: Rule) -> dict[str, tuple[tuple[int, ...] | None, str]]:
    """What a rule cannot know of a tree: shape and doubt by the leaf's name.

    A pattern that is found in no leaf stands under the pattern, with no shape. Of a
    part of a tree, as `optax.partition` and `optax.masked` hand it down, that is not
    known.

    Args:
      tree: parameters; arrays or `jax.ShapeDtypeStruct`.
      rule: what decides the roles, as it was given.

    Raises:
      ValueError: leaves of one stack disagree about its size.
    """
    leaves = {
        leaf_name(path): (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in leaves.items()}
    with listening() as said:
        roles = {name: rule(*of) for name, of in leaves.items()}
    found = _unknown_tables(roles, shapes)
    whole = not any(map(_is_masked, jax.tree.leaves(tree, is_leaf=_is_masked)))
    for each in [rule, *said.get("rules", {}).values()]:
        if isinstance(each, DefaultRoles):
            _check_stacks(each, shapes)
            for name, (path, leaf) in leaves.items():
                if doubt := each.explain(path, leaf)[1]:
                    found[name] = shapes[name], doubt
            for pattern in each.unused(list(leaves)) if whole else ():
                found[pattern] = None, "found in no leaf's name"
    return found


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _check_stacks(rule: DefaultRoles, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises if the leaves of one pattern have stacks of different sizes."""
    first: dict[int, tuple[str, int]] = {}
    for name, shape in shapes.items():
        matching = [i for i, (p, _) in enumerate(rule.stacked) if p.search(name)]
        axes = rule.stack_axes(name, shape)
        for i, axis in zip(matching, axes, strict=False):
            other, size = first.setdefault(i, (name, shape[axis]))
            if shape[axis] != size:
                raise ValueError(
                    f"stacked: {rule.stacked[i][0].pattern!r} is a stack of {size} in "
                    f"{other!r} and of {shape[axis]} in {name!r}"
                )


def _unknown_tables(
    roles: dict[str, Role], shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[tuple[int, ...] | None, str]]:
    """Single matrices that have a table's number of entries on one side."""
    sizes = {
        shapes[name][role.vocabulary_axis]: name
        for name, role in roles.items()
        if isinstance(role, Embedding) and len(set(shapes[name])) > 1
    }
    found: dict[tuple[int, ...], list[str]] = {}
    for name, role in roles.items():
        if isinstance(role, Matrix):
            view = View.of(role, shapes[name])
            if not view.stack and {view.m, view.n} & sizes.keys():
                found.setdefault(tuple(sorted((view.m, view.n))), []).append(name)
    return {
        name: (
            shapes[name],
            f"a hidden matrix with as many entries as {sizes[size]!r}: if it is a "
            "table or head, name it in default_roles(embeddings=...)",
        )
        for sides, alike in found.items()
        # More of them are layers, whose width happens to be that number.
        for name in alike[: len(alike) * (len(alike) <= _FEW)]
        for size in sides
        if size in sizes
    }


_FEW = 2


def tree_views(tree: Any, rule: Rule, owner: str) -> Any:
    """The tree of views of a tree that holds nothing but hidden matrices.

    Raises:
      ValueError: a leaf is no matrix. The message names `owner` and the leaf.
    """

    def view(path: Any, leaf: Any) -> View:
        role = rule(path, leaf)
        if not isinstance(role, Matrix):
            raise ValueError(
                f"{owner}: {leaf_name(path)!r} of shape {leaf.shape} is no hidden "
                "matrix; optlab.by_role gives such leaves to another transform"
            )
        return View.of(role, leaf.shape)

    return jax.tree_util.tree_map_with_path(view, tree)
