"""Checksums of a checkpoint: one word per array, and one for the place in the data."""

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trainer.state import leaf_names


def of_place(step: int, told: Any) -> int:
    """One word of the place in the data, say, and of the step that it belongs to."""
    return zlib.crc32(json.dumps([step, told], sort_keys=True).encode())


def of_arrays(arrays: Any) -> dict[str, int]:
    """One word per array, by its path; the same on any mesh."""
    sums = jax.device_get(_sum_all(jax.tree.leaves(arrays)))
    return dict(zip(leaf_names(arrays), map(int, sums), strict=True))


@jax.jit
def _sum_all(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(x: jax.Array) -> jax.Array:
    """Sum of an array's words, each times a different odd number, modulo 2^32.

    An odd factor has an inverse, so no change of a single word goes unnoticed, and
    integers are added exactly in any order.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, f"uint{min(32, 8 * x.dtype.itemsize)}")
    words = words.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
