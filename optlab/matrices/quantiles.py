"""Quantiles of the entries of each matrix of a stack, without sorting."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def quantile(x: jax.Array, q: float) -> jax.Array:
    """The `q`-quantile of the non-negative entries of each matrix, exactly.

    Interpolates linearly between order statistics like `jnp.quantile`, but selects
    them where that sorts: non-negative floats are ordered as their bits are, so one
    bisection over the bits finds the entry with the wanted rank.

    Args:
      x: shape `(..., m, n)`, entries >= 0.
      q: in [0, 1].

    Returns:
      Shape `(..., 1, 1)`.
    """
    lower, upper, fraction = _neighbours(x, q)
    return lower if fraction == 0 else lower + fraction * (upper - lower)


@quantile.defjvp
def _(q, primals, tangents):
    (x,), (dx,) = primals, tangents
    lower, upper, fraction = _neighbours(x, q)

    def moved(value: jax.Array) -> jax.Array:
        """The mean movement of the entries that have this value."""
        # Or are next to it: this program may round an entry otherwise than the search.
        there = jnp.abs(x - value) <= 4 * jnp.finfo(x.dtype).eps * value
        count = jnp.sum(there, axis=(-2, -1), keepdims=True)
        total = jnp.sum(jnp.where(there, dx, 0.0), axis=(-2, -1), keepdims=True)
        return total / jnp.maximum(count, 1).astype(x.dtype)

    value = quantile(x, q)
    if fraction == 0:
        return value, moved(lower)
    return value, moved(lower) + fraction * (moved(upper) - moved(lower))


def _neighbours(x: jax.Array, q: float) -> tuple[jax.Array, jax.Array, float]:
    """The entries on either side of the quantile, and its way from one to the other.

    Both come from loops. Outside of them XLA may make the entries a second time and
    round them otherwise, and an entry is then found above itself.
    """
    bits = 8 * x.dtype.itemsize
    keys = lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    position = q * (x.shape[-2] * x.shape[-1] - 1)
    rank = math.floor(position)

    def halve(step: jax.Array, low: jax.Array) -> jax.Array:
        # The sign bit is zero, so `bits - 1` of them are left to decide.
        bit = jnp.asarray(1, keys.dtype) << (bits - 2 - step).astype(keys.dtype)
        return jnp.where(_at_most(keys, low + (bit - 1)) <= rank, low + bit, low)

    low = lax.fori_loop(0, bits - 1, halve, jnp.zeros_like(keys[..., :1, :1]))
    most = jnp.full_like(low, jnp.iinfo(keys.dtype).max)

    def following(_: jax.Array, high: jax.Array) -> jax.Array:
        # That is `low`, and nothing which XLA would take out of the loop.
        limit = jnp.minimum(low, high)
        above = jnp.where(keys > limit, keys, high)
        above = jnp.min(above, axis=(-2, -1), keepdims=True)
        return jnp.where(_at_most(keys, limit) > rank + 1, low, above)

    # The second turn changes nothing. XLA would make one turn no loop.
    high = lax.fori_loop(0, 2, following, most) if position > rank else low
    lower, upper = (lax.bitcast_convert_type(y, x.dtype) for y in (low, high))
    return lower, upper, position - rank


def _at_most(keys: jax.Array, limit: jax.Array) -> jax.Array:
    """How many keys of each matrix are at most so large, shape `(..., 1, 1)`."""
    rows = _rows_a_byte(keys.shape[-2])
    if rows < 2:
        return _sum(keys, limit)
    return lax.platform_dependent(
        keys, limit, cpu=partial(_sum_in_bytes, rows), default=_sum
    )


def _sum(keys: jax.Array, limit: jax.Array) -> jax.Array:
    return jnp.sum(keys <= limit, axis=(-2, -1), keepdims=True, dtype=jnp.int32)


def _sum_in_bytes(rows: int, keys: jax.Array, limit: jax.Array) -> jax.Array:
    """The same sum, with `rows` rows at a time in bytes, one for each column.

    A CPU adds 32 bytes at once, where XLA adds the entries of a matrix one by one: a
    quantile of 768x2048 entries took 50 ms, and takes 12.
    """
    *stack, m, n = keys.shape
    below = (keys <= limit).reshape(*stack, m // rows, rows, n)
    columns = jnp.sum(below, axis=-2, dtype=jnp.int8)
    # XLA would make one sum of both.
    columns = lax.optimization_barrier(columns)
    return jnp.sum(columns, axis=(-2, -1), keepdims=True, dtype=jnp.int32)


def _rows_a_byte(rows: int) -> int:
    """The most rows that share a byte: a divisor of their number, at most 127."""
    return max((d for d in range(1, 128) if rows % d == 0), default=1) if rows else 1
