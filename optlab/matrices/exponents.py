"""Powers of two by the bits of floating-point numbers.

`jnp.frexp` and `jnp.ldexp` do the same for every number. They are forty operations, and
took half of the time to compile a step of COSMOS.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def exponent_of(x: jax.Array) -> jax.Array:
    """The largest whole `k` with `2^k <= |x|`, int32, of floating-point numbers.

    Below all normal numbers, and at 0, it is the smallest normal exponent less one; at
    infinity and NaN the largest plus one. It has no derivative.
    """
    bits, mantissa = _layout(x.dtype)
    field = lax.bitcast_convert_type(lax.stop_gradient(jnp.abs(x)), bits) >> mantissa
    return field.astype(jnp.int32) + (int(jnp.finfo(x.dtype).minexp) - 1)


def power_below(x: jax.Array) -> jax.Array:
    """The largest power of two that is at most `|x|`, of floating-point numbers.

    0 below all normal numbers, infinity at infinity and NaN. It has no derivative.
    """
    bits, mantissa = _layout(x.dtype)
    exponents = ~np.asarray((1 << mantissa) - 1, bits) << 1 >> 1
    field = lax.bitcast_convert_type(lax.stop_gradient(x), bits) & exponents
    return lax.bitcast_convert_type(field, x.dtype)


def power_of_two(exponent: jax.Array, dtype: Any) -> jax.Array:
    """`2^exponent` to the bit, for int32 exponents of normal numbers of that dtype."""
    bits, mantissa = _layout(dtype)
    field = exponent - (int(jnp.finfo(dtype).minexp) - 1)
    return lax.bitcast_convert_type(field.astype(bits) << mantissa, dtype)


def _layout(dtype: Any) -> tuple[Any, int]:
    """The integers as wide as the numbers, and the place of the exponent's last bit."""
    info: Any = jnp.finfo(dtype)
    return np.dtype(f"uint{info.bits}"), int(info.nmant)
