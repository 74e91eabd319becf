"""A walk over an optimizer's state: which array is whose, and who keeps it.

And what transforms say of their parameters while the state is made: an optimizer is
two functions, and wrappers such as `optax.chain` hide what they were made with, but
all of them hand the parameters down to every transform's `init`.
"""

import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from optlab.roles import leaf_name

_SAID: contextvars.ContextVar[dict[str, dict[Any, Any]] | None] = (
    contextvars.ContextVar("said", default=None)
)


class StateLeaf(NamedTuple):
    """An array of an optimizer's state.

    Attributes:
      path: its key path.
      transform: the name of the transform that keeps it, such as "cosmos".
      is_factor: whether its field stands in its state's `FACTORS`: it has the stack
        axes of its parameter and then axes of its own, and lives where the matrix is
        worked on, whatever shape it has.
      value: the array or its `jax.ShapeDtypeStruct`.
    """

    path: tuple[Any, ...]
    transform: str
    is_factor: bool
    value: Any


def state_leaves(state: Any) -> list[StateLeaf]:
    """The arrays of a state, in the order of `jax.tree.leaves`."""
    return list(_walk(state, (), "", False))


def _walk(
    node: Any, path: tuple[Any, ...], transform: str, is_factor: bool
) -> Iterator[StateLeaf]:
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
    shapes = {
        tuple(path): tuple(getattr(leaf, "shape", ()))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    leaves = {
        tuple(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    wanted = jax.eval_shape(init, updates)
    for path, _, is_factor, leaf in state_leaves(wanted):
        found = shapes.get(tuple(path))
        if found == leaf.shape or (is_factor and _is_slice(found, leaf.shape)):
            continue
        name = owner = leaf_name(path)
        if (parameter := owning_parameter(path, leaves)) is not None:
            owner = leaf_name(parameter)
        needs = "is missing" if found is None else f"has shape {found}"
        of = "" if parameter is None else f" of shape {leaves[parameter].shape}"
        raise ValueError(
            f"state: {owner!r}{of} does not fit the state, where {name!r} of shape "
            f"{leaf.shape} {needs}; the state was made for other shapes or other roles"
        )


def _is_slice(found: tuple[int, ...] | None, whole: tuple[int, ...]) -> bool:
    """Whether a factor is a part of its stack, as inside `jax.shard_map`."""
    return bool(found) and found[1:] == whole[1:] and whole[0] % max(found[0], 1) == 0


def say(subject: str, params: Any, value: Any) -> None:
    """Tells `make_abstract_state` something about all these parameters.

    For the `init` of a transform; whoever else calls that hears nothing.
    """
    said = _SAID.get()
    if said is not None:
        paths = [tuple(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        said.setdefault(subject, {}).update(dict.fromkeys(paths, value))


def make_abstract_state(tx: Any, params: Any) -> tuple[Any, dict[str, dict[Any, Any]]]:
    """The state's shapes, and what was said: by subject and path of the parameter."""
    said: dict[str, dict[Any, Any]] = {}
    token = _SAID.set(said)

    def init(params):
        # Not seen by jax before, which runs no function for a second time.
        return tx.init(params)

    try:
        state = jax.eval_shape(init, params)
    finally:
        _SAID.reset(token)
    return state, said
