"""The precision that state and arithmetic have at least."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """The dtype, or float32 if that is wider; under strict promotion as well."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def as_floating(name: str, value: Any) -> jax.Array:
    """An argument as an array.

    Integers are refused, not converted: results in their own dtype would be cut to
    whole numbers.

    Raises:
      ValueError: it is no array of floating numbers.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        got = f"a {type(value).__name__}"
    else:
        if jnp.issubdtype(array.dtype, jnp.floating):
            return array
        got = f"{array.dtype}"
    raise ValueError(f"{name} must be an array of floating numbers, got {got}")


def check_floating(name: str, tree: Any) -> None:
    """The same of every leaf of a tree, of arrays or of their shapes.

    Raises:
      ValueError: a leaf is nothing of that; the message names it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            of = f"{name}: {place!r}" if path else name
            got = f"a {type(leaf).__name__}" if dtype is None else f"{dtype}"
            raise ValueError(f"{of} must be an array of floating numbers, got {got}")
