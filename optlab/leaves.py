"""What every transform of the library promises of leaves that are out of the ordinary.

Leaves without a gradient or without entries are let through, and complex ones are
refused where a method is for real numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    promoted by jax's standard rule, whatever the caller's setting.

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

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            if not any(map(_is_odd, jax.tree.leaves(updates, is_leaf=_is_none))):
                check_fit(init_fn, updates, state)
                return update_fn(updates, state, params, **extra)

            def rest(tree):
                return _without_odd_leaves(tree, updates)

            gradients = rest(updates)
            check_fit(init_fn, gradients, state)
            own = part_of_state(state, jax.eval_shape(init_fn, gradients))
            more = {name: _if_like(updates, rest, x) for name, x in extra.items()}
            params = None if params is None else rest(params)
            new, own = update_fn(gradients, own, params, **more)
        filled = jax.tree.map(
            lambda g, u: g if _is_odd(g) else u, updates, new, is_leaf=_is_none
        )
        return filled, _put_back(state, own)

    return optax.GradientTransformationExtraArgs(init, update)


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


def _refuse_complex(method: str, params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.complexfloating):
            raise ValueError(
                f"{method}: {leaf_name(path)!r} is complex; wrap the optimizer in "
                "optax.contrib.split_real_and_imaginary, or give the leaf to another"
            )
