"""How many directions a matrix of activations or weights really uses."""

import jax
import jax.numpy as jnp

from optlab.dtypes import at_least_float32


def effective_rank(matrix: jax.Array) -> jax.Array:
    """The exponential of the entropy of the normalised singular values.

    Between 1, for one direction, and the rank, where all singular values are equal; 0
    for a matrix of zeros.

    Args:
      matrix: `(..., m, n)`, such as the last hidden layer of `m` examples.

    Returns:
      `(...)`, of float32 at least.

    Raises:
      ValueError: `matrix` has fewer than two axes.

    References:
      Roy and Vetterli, `The effective rank: a measure of effective dimensionality
      <https://infoscience.epfl.ch/record/110188>`_, 2007.
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim < 2:
        raise ValueError(f"matrix must have shape (..., m, n), got {matrix.shape}")
    matrix = matrix.astype(at_least_float32(matrix.dtype))
    values = jnp.linalg.svd(matrix, compute_uv=False)
    total = jnp.sum(values, -1, keepdims=True)
    shares = values / jnp.where(total > 0, total, 1)
    logs = jnp.log(jnp.where(shares > 0, shares, 1))
    rank = jnp.exp(-jnp.sum(shares * logs, -1))
    return jnp.where(total[..., 0] > 0, rank, 0)
