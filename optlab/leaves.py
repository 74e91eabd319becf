"""What every transform of the library promises of leaves that are out of the ordinary.

Leaves without a gradient or without entries are let through, and complex ones are
refused where a method is for real numbers. On a mesh with Explicit axes a transform
does what it does on one with Auto axes.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optlab.matrices.buckets import Distribute
from optlab.roles import leaf_name
from optlab.state import check_fit, part_of_state, say


def over_leaves(
    init_fn: Callable[..., Any],
    update_fn: Callable[..., Any],
    *,
    real: str = "",
    distribute: Distribute | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation of these two functions, which see ordinary leaves alone.

    Leaves without entries, and those whose gradient is None, stand aside: their update
    is what came in, and their state stays. The parameters and the extra arguments may
    have anything in the place of such a None, as `optax.adamw` allows. Dtypes are
    promoted by jax's standard rule, whatever the caller's setting. Gradients of whole
    numbers are refused, since their updates would be cut to whole numbers.

    Args:
      init_fn: of the transformation.
      update_fn: of the transformation; takes extra arguments.
      real: the name of a method for real numbers only, which refuses complex leaves.
      distribute: what spreads its work, which the layout of its state asks for.
    """

    def init(params):
        if real:
            _refuse_complex(real, params)
        if distribute is not None:
            say("distribute", params, distribute)
        with jax.numpy_dtype_promotion("standard"):
            return init_fn(_without_odd_leaves(params, params))

    def inside(updates, state, params, extra):
        _refuse_whole_numbers(updates)
        with jax.numpy_dtype_promotion("standard"):
            if not any(map(_is_odd, jax.tree.leaves(updates, is_leaf=_is_none))):
                with _checked(init_fn, updates, state):
                    return update_fn(updates, state, params, **extra)

            def rest(tree):
                return _without_odd_leaves(tree, updates)

            gradients = rest(updates)
            with _checked(init_fn, gradients, state):
                own = part_of_state(state, jax.eval_shape(init_fn, gradients))
                more = {name: _if_like(updates, rest, x) for name, x in extra.items()}
                params = None if params is None else rest(params)
                new, own = update_fn(gradients, own, params, **more)
        filled = jax.tree.map(
            lambda g, u: g if _is_odd(g) else u, updates, new, is_leaf=_is_none
        )
        return filled, _put_back(state, own)

    spread = under_auto_axes(inside, lambda updates, state, *_: (updates, state))

    def update(updates, state, params=None, **extra):
        return spread(updates, state, params, extra)

    return optax.GradientTransformationExtraArgs(init, update)


# Whether the update that runs is inside another one, whose state was checked.
_inside: ContextVar[bool] = ContextVar("inside", default=False)


@contextlib.contextmanager
def _checked(init: Callable[[Any], Any], updates: Any, state: Any) -> Iterator[None]:
    """Checks the state once: that of the outermost transform has all others in it."""
    if _inside.get():
        yield
        return
    check_fit(init, updates, state)
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def under_auto_axes(
    f: Callable[..., Any], like: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """`f`, made under Auto axes where its arrays are cut over Explicit ones.

    On Explicit axes, jax's default, the products of matrices that are cut up raise.

    Args:
      f: a function of trees.
      like: of the same arguments: a tree like the result, whose arrays are laid out as
        those of the result are to be. None: the result is the same on all devices.
    """

    def run(*arguments):
        leaves, treedef = jax.tree.flatten(arguments)
        arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)}
        meshes = [jax.typeof(x).sharding.mesh for x in arrays.values()]
        mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
        if mesh is None:
            return f(*arguments)
        if not any(isinstance(x, jax.core.Tracer) for x in arrays.values()):
            return compiled(*arguments)

        def inside(arrays):
            now = [arrays.get(i, x) for i, x in enumerate(leaves)]
            return f(*treedef.unflatten(now))

        everywhere = NamedSharding(mesh, P())
        layouts = everywhere
        if like is not None:
            layouts = jax.tree.map(partial(_layout, everywhere), like(*arguments))
        return jax.sharding.auto_axes(
            inside, axes=mesh.explicit_axes, out_sharding=layouts
        )(arrays)

    compiled = jax.jit(run)
    return run


def _layout(everywhere: NamedSharding, x: Any) -> NamedSharding:
    """How an array is laid out; everywhere, if it is on no mesh."""
    own = jax.typeof(x).sharding if isinstance(x, jax.Array) else everywhere
    return everywhere if own.mesh.empty else own


def _is_none(x: Any) -> bool:
    return x is None


def _is_odd(gradient: Any) -> bool:
    return gradient is None or 0 in getattr(gradient, "shape", ())


def _without_odd_leaves(tree: Any, like: Any) -> Any:
    """The tree with None where the leaf of `like` is odd."""
    return jax.tree.map(
        lambda g, x: None if _is_odd(g) else x, like, tree, is_leaf=_is_none
    )


def _if_like(updates: Any, f: Callable[[Any], Any], value: Any) -> Any:
    """`f(value)` if that is a tree like the updates."""
    try:
        jax.tree.map(lambda *_: None, updates, value, is_leaf=_is_none)
    except (TypeError, ValueError):
        return value
    return f(value)


def _put_back(state: Any, part: Any) -> Any:
    """The state with those of its leaves that `part` has from there."""
    leaves = dict(jax.tree_util.tree_leaves_with_path(part))
    return jax.tree_util.tree_map_with_path(leaves.get, state)


def _refuse_whole_numbers(gradients: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        dtype = getattr(leaf, "dtype", float)
        if jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_):
            raise ValueError(
                f"grads: {leaf_name(path)!r} is {dtype}, and gradients are floating"
            )


def _refuse_complex(method: str, params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.complexfloating):
            raise ValueError(
                f"{method}: {leaf_name(path)!r} is complex; wrap the optimizer in "
                "optax.contrib.split_real_and_imaginary, or give the leaf to another"
            )
