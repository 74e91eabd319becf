"""Products that are symmetric: the upper blocks are computed, the others mirrored.

`X X^T` is symmetric, and so is a product of two polynomials in one symmetric matrix.
Cut into `P` parts a side, it takes `(P + 1) / (2 P)` of the FLOPs of a whole product.
The mirror only moves numbers, so that it pays where products are slow: on CPUs in 32
and 64 bits, from sides of about 768 on. On two cores an orthogonalization of 1024x2816
takes 0.84 of its time, of 1024x1024 0.90. On GPUs and TPUs products are left whole: in
16 bits they take about as long as the mirror would, and where the compiler cuts a
matrix over devices, blocks of it need more collectives.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_LEAST = 384  # width of a block
_MOST = 4  # blocks in a row


def parts(m: int) -> int:
    """How many blocks a side of `m` is cut into."""
    return max(1, min(_MOST, m // _LEAST))


def share(m: int) -> float:
    """FLOPs of a symmetric `m x m` product over those of a whole one."""
    return sum((stop - start) * (m - start) for start, stop in _blocks(m)) / m**2


def symmetric(
    multiply: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, b: jax.Array
) -> jax.Array:
    """`A B`, of which on CPUs only the upper blocks are computed.

    Args:
      multiply: makes a product of two stacks of matrices.
      a: shape `(..., m, k)`.
      b: shape `(..., k, m)`, such that `A B` is symmetric but for rounding.

    Returns:
      Shape `(..., m, m)`.
    """
    blocks = _blocks(a.shape[-2])
    if len(blocks) == 1:
        return multiply(a, b)

    def by_blocks(a: jax.Array, b: jax.Array) -> jax.Array:
        return _mirrored(multiply, a, b, blocks)

    return lax.platform_dependent(a, b, cpu=by_blocks, default=multiply)


def _mirrored(
    multiply: Callable[[jax.Array, jax.Array], jax.Array],
    a: jax.Array,
    b: jax.Array,
    blocks: list[tuple[int, int]],
) -> jax.Array:
    # Each row of blocks from its block of the diagonal on.
    upper = {i: multiply(a[..., i:j, :], b[..., i:]) for i, j in blocks}
    rows = []
    for i, j in blocks:
        left = [upper[k][..., i - k : j - k].mT for k, _ in blocks if k < i]
        rows.append(jnp.concatenate([*left, upper[i]], -1))
    return jnp.concatenate(rows, -2)


def _blocks(m: int) -> list[tuple[int, int]]:
    count = parts(m)
    # Multiples of 16, which is what caches and vectors like.
    cuts = [round(m * i / count / 16) * 16 for i in range(count)]
    return list(zip(cuts, [*cuts[1:], m], strict=True))
