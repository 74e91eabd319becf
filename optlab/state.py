"""A walk over an optimizer's state: which array is whose, and who keeps it.

Factors of matrices may be kept by bucket, those of several parameters in one array:
see :class:`Stacks`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab.roles import Rule, leaf_name
from optlab.said import Said, listening, note

Path = tuple[Any, ...]


class Bucket(NamedTuple):
    """What is kept in one array: the factors of leaves that are seen alike.

    Attributes:
      members: the key paths of those leaves, in the order of their tree.
      stack: the stack axes that each of them has, () for a single matrix.
      slices: of the array's first axis: the matrices of all members, those of one
        place in the stack side by side, and padding that makes a number which the
        devices divide.
    """

    members: tuple[Path, ...]
    stack: tuple[int, ...]
    slices: int

    @property
    def matrices(self) -> int:
        """How many there are, without padding."""
        return math.prod(self.stack) * len(self.members)

    def join(self, arrays: list[Any]) -> jax.Array:
        """The members' arrays `(stack..., x, y)` as the bucket's `(slices, x, y)`."""
        own = arrays[0].shape[-2:]
        joined = jnp.stack([x.reshape(-1, *own) for x in arrays], 1).reshape(-1, *own)
        return jnp.pad(joined, ((0, self.slices - self.matrices), (0, 0), (0, 0)))

    def split(self, array: jax.Array) -> list[jax.Array]:
        """What each member has of the bucket's array."""
        own, count = array.shape[1:], len(self.members)
        each = array[: self.matrices].reshape(-1, count, *own)
        return [each[:, i].reshape(*self.stack, *own) for i in range(count)]


@jax.tree_util.register_pytree_with_keys_class
class Stacks:
    """A tree of factors, some of them kept by bucket, so that a mesh divides them.

    Attributes:
      leaves: the tree, with None for what is in a bucket.
      buckets: the arrays `(slices, x, y)`, one a bucket.
      plan: what is in which, static.
    """

    def __init__(self, leaves: Any, buckets: Any, plan: tuple[Bucket, ...]):
        self.leaves, self.buckets, self.plan = leaves, tuple(buckets), plan

    def __eq__(self, other: object):
        """As other containers of a tree."""
        if not isinstance(other, Stacks):
            return NotImplemented
        mine = (self.plan, self.leaves, self.buckets)
        return mine == (other.plan, other.leaves, other.buckets)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self):
        return f"Stacks({self.leaves!r}, {self.buckets!r})"

    def tree_flatten_with_keys(self):
        """For jax."""
        keys = map(jax.tree_util.GetAttrKey, ("leaves", "buckets"))
        return tuple(zip(keys, (self.leaves, self.buckets), strict=True)), self.plan

    @classmethod
    def tree_unflatten(cls, plan: tuple[Bucket, ...], children: Any) -> "Stacks":
        """For jax."""
        made = object.__new__(cls)
        (made.leaves, made.buckets), made.plan = children, plan
        return made

    def by_leaf(self) -> Any:
        """The factors as a tree like the parameters', as they are on one device."""
        found = {
            member: part
            for bucket, array in zip(self.plan, self.buckets, strict=True)
            for member, part in zip(bucket.members, bucket.split(array), strict=True)
        }
        return fill(self.leaves, found)

    @classmethod
    def of(cls, tree: Any, plan: tuple[Bucket, ...]) -> Any:
        """A tree of factors, kept as the plan says; the tree where that has nothing."""
        if not plan:
            return tree
        found = {tuple(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        buckets = [bucket.join([found[m] for m in bucket.members]) for bucket in plan]
        return cls(without(tree, plan), buckets, plan)


def is_stacks(x: Any) -> bool:
    """Whether it is a :class:`Stacks`."""
    return isinstance(x, Stacks)


def without(tree: Any, plan: tuple[Bucket, ...], is_leaf: Any = None) -> Any:
    """The tree with None for the leaves that the plan has in buckets."""
    members = {member for bucket in plan for member in bucket.members}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: None if tuple(path) in members else x, tree, is_leaf=is_leaf
    )


def fill(tree: Any, found: dict[Path, Any]) -> Any:
    """The tree with these leaves in the place of a None."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: found.get(tuple(path)) if x is None else x,
        tree,
        is_leaf=lambda x: x is None,
    )


def restack(state: Any, like: Any) -> Any:
    """A state whose factors are kept as another state's are, equal to the bit.

    A mesh that does not divide a stack of matrices has their factors by bucket, cut
    and padded for its number of devices. This cuts and pads them for another one, as
    after a checkpoint was read. Call it under `jax.jit`, with the layouts of
    `optlab.sharding.state_shardings` for its results.

    Example:
      >>> import jax, jax.numpy as jnp, optlab
      >>> tx = optlab.cosmos(2e-3, rank=2)
      >>> state = tx.init({"w": jnp.ones((6, 4))})
      >>> here = jax.eval_shape(tx.init, {"w": jnp.ones((6, 4))})
      >>> state = optlab.sharding.restack(state, here)

    Args:
      state: of an optimizer.
      like: a state of the same optimizer, or its shapes, as `tx.init` makes it here.

    Returns:
      The values of `state` in the structure of `like`.
    """
    return jax.tree.map(
        lambda want, x: Stacks.of(x, want.plan) if is_stacks(want) else x,
        *(like, by_leaf(state)),
        is_leaf=is_stacks,
    )


def by_leaf(state: Any) -> Any:
    """The state with all factors kept by leaf, as on one device."""
    return jax.tree.map(
        lambda x: x.by_leaf() if is_stacks(x) else x, state, is_leaf=is_stacks
    )


class StateLeaf(NamedTuple):
    """An array of an optimizer's state.

    Attributes:
      path: its key path; in a :class:`Stacks` as if all leaves were kept by leaf, and
        for a bucket the field's.
      transform: the name of the transform that keeps it, such as "cosmos".
      is_factor: whether its field stands in its state's `FACTORS`: it has the stack
        axes of its parameter and then other axes, and lives where the matrix is
        worked on, whatever shape it has.
      value: the array or its `jax.ShapeDtypeStruct`.
      bucket: what is in it, None for what is kept by leaf.
    """

    path: Path
    transform: str
    is_factor: bool
    value: Any
    bucket: Bucket | None = None

    @property
    def parts(self) -> list[tuple[Path, tuple[int, ...]]]:
        """Path and shape of every leaf in it, as they are when kept by leaf."""
        shape: tuple[int, ...] = tuple(getattr(self.value, "shape", ()))
        if self.bucket is None:
            return [(self.path, shape)]
        # Inside `jax.shard_map` there is a part of it.
        if shape and self.bucket.slices % max(shape[0], 1) == 0:
            shape = (*self.bucket.stack, *shape[1:])
        return [((*self.path, *member), shape) for member in self.bucket.members]


def state_leaves(state: Any) -> list[StateLeaf]:
    """The arrays of a state, in the order of `jax.tree.leaves`."""
    return list(_walk(state, (), "", False))


def _walk(
    node: Any, path: tuple[Any, ...], transform: str, is_factor: bool
) -> Iterator[StateLeaf]:
    if isinstance(node, Stacks):
        yield from _walk(node.leaves, path, transform, is_factor)
        for array, bucket in zip(node.buckets, node.plan, strict=True):
            yield StateLeaf(path, transform, is_factor, array, bucket)
        return
    if hasattr(node, "_fields"):
        name = type(node).__name__
        if name.endswith("State"):
            name = name.removesuffix("State").removeprefix("ScaleBy").lower()
            transform = name or transform
        # One level of a NamedTuple: jax's own flattening gives all keys one name.
        factors = getattr(type(node), "FACTORS", ())
        for field, child in zip(node._fields, node, strict=True):
            key = jax.tree_util.GetAttrKey(field)
            inside = is_factor or field in factors
            yield from _walk(child, (*path, key), transform, inside)
        return
    children = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    if children is None:
        yield StateLeaf(path, transform, is_factor, node)
        return
    for key, child in children[0]:
        yield from _walk(child, (*path, key), transform, is_factor)


def owning_parameter(path: Any, parameters: Any) -> Any:
    """The parameter whose path ends the path of a state leaf; the longest, or None."""
    for start in range(len(path)):
        if tuple(path[start:]) in parameters:
            return tuple(path[start:])
    return None


def check_fit(init: Callable[[Any], Any], updates: Any, state: Any) -> None:
    """Raises `ValueError` if a state was made for other shapes or other roles.

    What the state must hold is what `init` would make of the gradients. More may be
    in it, for leaves that have no gradient in this call.

    Args:
      init: of the transform that the state is of.
      updates: the gradients.
      state: the transform's.

    Raises:
      ValueError: the message names the first leaf that does not fit.
    """
    shapes = {path: shape for leaf in state_leaves(state) for path, shape in leaf.parts}
    leaves = {
        tuple(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    wanted = state_leaves(jax.eval_shape(init, updates))
    for leaf, (path, shape) in ((x, part) for x in wanted for part in x.parts):
        found = shapes.get(path)
        if found == shape or (leaf.is_factor and _is_slice(found, shape)):
            continue
        name = owner = leaf_name(path)
        if (parameter := owning_parameter(path, leaves)) is not None:
            owner = leaf_name(parameter)
        needs = "is missing" if found is None else f"has shape {found}"
        of = "" if parameter is None else f" of shape {leaves[parameter].shape}"
        raise ValueError(
            f"state: {owner!r}{of} does not fit the state, where {name!r} of shape "
            f"{shape} {needs}; the state was made for other shapes or other roles"
        )


def _is_slice(found: tuple[int, ...] | None, whole: tuple[int, ...]) -> bool:
    """Whether a factor is a part of its stack, as inside `jax.shard_map`."""
    return bool(found) and found[1:] == whole[1:] and whole[0] % max(found[0], 1) == 0


def part_of_state(state: Any, wanted: Any) -> Any:
    """The leaves of a state that are in `wanted` too; buckets stay whole."""
    found = dict(jax.tree_util.tree_leaves_with_path(state, is_leaf=is_stacks))
    entries, treedef = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(by_leaf, wanted),
        is_leaf=lambda path, _: is_stacks(found.get(path)),
        is_leaf_takes_path=True,
    )

    def part(path: Any, own: Any) -> Any:
        node = found[path]
        if not is_stacks(node):
            return node
        leaves = dict(jax.tree_util.tree_leaves_with_path(node.leaves))
        tree = jax.tree_util.tree_map_with_path(
            lambda inside, _: leaves[inside], without(own, node.plan)
        )
        return Stacks(tree, node.buckets, node.plan)

    return treedef.unflatten([part(path, own) for path, own in entries])


class Observed(NamedTuple):
    """One transform of an update, as a function that diagnoses it gets to see it.

    Attributes:
      gradients: by the parameter's name, in at least float32.
      before: the transform's own state before the update.
      after: and after.
      rule: what decides the roles.
      arguments: the keyword arguments that the optimizer was made with, as far as they
        were given.
    """

    gradients: Mapping[str, jax.Array]
    before: Any
    after: Any
    rule: Rule
    arguments: Mapping[str, Any]


# What is diagnosed, by its name in the records: a tree of one number a layer, like the
# parameters or a part of them.
Diagnose = Callable[[Observed], dict[str, Any]]


def say(subject: str, params: Any, value: Any) -> None:
    """Tells `make_abstract_state` something about all these parameters.

    For the `init` of a transform; whoever else calls that hears nothing.
    """
    paths = [tuple(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    note(subject, dict.fromkeys(paths, value))


def make_abstract_state(tx: Any, params: Any) -> tuple[Any, Said]:
    """The state's shapes, and what was said: by subject and path of the parameter."""

    def init(params):
        # Not seen by jax before, which runs no function for a second time.
        return tx.init(params)

    with listening() as said:
        state = jax.eval_shape(init, params)
    return state, said
