"""Codes of 8 bits for moments, and weights in two parts: arrays in, arrays out.

The formulas are those of databricks/flashoptim at commit 8b2d966, to the bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from optlab.matrices.exponents import exponent_of, power_of_two


def quantize(
    x: jax.Array,
    *,
    signed: bool = True,
    softsign: bool = True,
    sqrt: bool = False,
    group_size: int = 32,
    scale_dtype: DTypeLike = jnp.float16,
    least: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Codes of 8 bits, with a scale for each group along the last axis.

    With `z` the entries, or their roots, over the largest of the group::

        y = 2 z / (1 + |z|) if softsign, else z ;  q = floor(M y + 1/2)

    Args:
      x: float array `(..., n)`; a scalar is a group of one.
      signed: whether codes are int8 with M = 127, or uint8 with M = 255.
      softsign: whether small entries get more of the codes.
      sqrt: whether the root is coded, for entries that are at least 0.
      group_size: entries with one scale; the last group may have fewer.
      scale_dtype: of the scales. Largest entries beyond its range are lost.
      least: the least code of an entry above 0.

    Returns:
      The codes `(..., n)` and the scales `(..., ceil(n / group_size))`.
    """
    grouped, n = _groups(jnp.atleast_1d(x.astype(jnp.float32)), group_size)
    values = jnp.sqrt(grouped) if sqrt else grouped
    largest = jnp.max(jnp.abs(values), -1, keepdims=True)
    scale = jnp.maximum(largest, jnp.float32(1e-12))
    z = values / scale
    y = 2 * z / (1 + jnp.abs(z)) if softsign else z
    codes = jnp.floor((127.0 if signed else 255.0) * y + 0.5)
    if least:
        codes = jnp.where(grouped > 0, jnp.maximum(codes, least), codes)
    codes = codes.astype(jnp.int8 if signed else jnp.uint8)
    flat = codes.reshape(*codes.shape[:-2], -1)[..., :n]
    return flat.reshape(x.shape), scale[..., 0].astype(scale_dtype)


def dequantize(
    codes: jax.Array,
    scales: jax.Array,
    *,
    softsign: bool = True,
    sqrt: bool = False,
    group_size: int = 32,
) -> jax.Array:
    """What :func:`quantize` coded, in float32."""
    # From a table: compilers divide by multiplying by the inverse, which rounds
    # otherwise.
    first = int(jnp.iinfo(codes.dtype).min)
    numbers = np.arange(first, first + 256, dtype=np.float32)
    table = numbers / np.float32(127 if first else 255)
    table = table / (2 - np.abs(table)) if softsign else table
    places = jnp.atleast_1d(codes).astype(jnp.int32) - first
    grouped, n = _groups(jnp.take(jnp.asarray(table), places), group_size)
    x = grouped * scales.astype(jnp.float32)[..., None]
    x = jnp.square(x) if sqrt else x
    return x.reshape(*x.shape[:-2], -1)[..., :n].reshape(codes.shape)


def _groups(x: jax.Array, size: int) -> tuple[jax.Array, int]:
    """`(..., n)` as `(..., groups, size)`, filled up with zeros, and `n`."""
    n = x.shape[-1]
    missing = -n % size
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], -1, size), n


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """A float32 array in bfloat16, up or down so that the mean is the number."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(cut, jnp.float32)
    # What is not finite has no neighbours.
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def split(
    x: jax.Array, dtype: DTypeLike = jnp.bfloat16, bits: int = 8
) -> tuple[jax.Array, jax.Array]:
    """A float32 array as narrow weights and the rest, in codes of half a spacing.

    Args:
      x: float32 array.
      dtype: of the weights, bfloat16 or float16.
      bits: of the rest, 8 or 16.

    Returns:
      The weights, and the codes as int8 or int16.
    """
    weights = x.astype(dtype)
    most = 2 ** (bits - 1) - 1
    exponent, half = _exponent(weights)
    # Near 1, where no difference is subnormal: devices take those for 0.
    rest = (_shift(x, -exponent) - _shift(weights, -exponent)) / half
    scaled = jnp.clip(rest, -1.0, 1.0) * most
    codes = jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5)
    # Where the weight is not finite nothing is left of the number.
    codes = jnp.where(jnp.isfinite(codes), codes, 0.0)
    return weights, codes.astype(jnp.int8 if bits == 8 else jnp.int16)


def join(weights: jax.Array, codes: jax.Array) -> jax.Array:
    """The float32 array that :func:`split` took apart, to 2^-17 or 2^-24 of it."""
    most = float(jnp.iinfo(codes.dtype).max)
    exponent, half = _exponent(weights)
    part = codes.astype(jnp.float32) / most * half
    return _shift(_shift(weights, -exponent) + part, exponent)


def _exponent(weights: jax.Array) -> tuple[jax.Array, float]:
    """The exponents, and half the distance to the next narrow number at 1."""
    info: Any = jnp.finfo(weights.dtype)
    exponent = exponent_of(weights.astype(jnp.float32))
    return jnp.maximum(exponent, int(info.minexp)), 2.0 ** -(int(info.nmant) + 1)


def _shift(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """`x 2^exponent` in float32, by two powers that are normal numbers themselves."""
    first = exponent // 2
    wide = x.astype(jnp.float32) * power_of_two(first, jnp.float32)
    return wide * power_of_two(exponent - first, jnp.float32)
