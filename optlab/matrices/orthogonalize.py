"""Orthogonalization by Newton-Schulz iteration, on one matrix or a stack of them.

An odd polynomial `p(s) = a s + b s^3 + c s^5`, applied a few times to the singular
values of `X / |X|`, drives them towards one and so takes `X` to its polar factor
`U V^T` with products alone. The norm is Frobenius', or Schatten's of order four,
`|X X^T|_F^(1/2)`: it is not below the largest singular value either, comes nearer to
it, and costs nothing, since the first step makes `X X^T` anyway. Two forms compute the
same polynomial:

* plain: `A = X X^T`, `X <- a X + (b A + c A A) X`, at every step on the wide `X`;
* Gram: the steps act on the small `R = X X^T` and gather one factor `Q`, so that the
  wide `X` is multiplied twice in all, once into `R` and once by `Q`.

With `m <= n` and `K` steps the plain form costs `K (4 m^2 n + 2 m^3)` FLOPs, the Gram
form `4 m^2 n + (8 K - 6) m^3`: the second is cheaper from an aspect of about 1.5 on.
On CPUs symmetric products of large matrices cost less, see
:mod:`optlab.matrices.symmetric`.

References:
  Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
  Zhang et al., *Gram Newton-Schulz*, Dao AI Lab, 2026.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from optlab import checks
from optlab.dtypes import as_floating, at_least_float32
from optlab.matrices.coefficients.fit import NORMALIZATIONS
from optlab.matrices.coefficients.presets import MUON, resolve_coefficients
from optlab.matrices.linalg import unit
from optlab.matrices.precision import iterate
from optlab.matrices.symmetric import share, symmetric

Coefficients = str | Sequence[float] | Sequence[Sequence[float]]

# The reference implementations of Muon, COSMOS, ROOT and Scion all add 1e-7.
_NORM_EPS = 1e-7

# The Gram form squares the singular values, so that rounding leaves noise of half an
# epsilon on the eigenvalues of R, and every step multiplies it by up to a^2. Where the
# noise that reaches a step would pass this bound, R is made again from X.
_NOISE_BOUND = 0.1
# Of 16 bits the same, in what the steps multiply by; their diagonals are kept apart.
_GROWTH_BOUND = 150.0


def orthogonalize(
    x: jax.Array,
    *,
    steps: int = 5,
    coeffs: Coefficients = MUON,
    normalize: Literal["frobenius", "schatten4"] = "frobenius",
    method: Literal["auto", "plain", "gram"] = "auto",
    eps: float = _NORM_EPS,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Takes matrices close to their polar factors, `U S V^T -> U p_K(S) V^T`.

    Args:
      x: array of shape `(..., m, n)`; leading axes are a stack of matrices.
      steps: number `K` of Newton-Schulz steps.
      coeffs: `(a, b, c)` for every step, `K` such triples, or a preset's name.
      normalize: the norm that the matrix is divided by first, "frobenius" or
        "schatten4".
      method: "plain", "gram", or "auto" for whichever needs fewer FLOPs.
      eps: added to the Frobenius norm, by either normalization.
      dtype: of the products' operands. None: bfloat16 for float32 on GPUs and TPUs,
        else that of `x`, and at least float32. What is added to products stays at
        least float32. The Gram form is within 2e-3 of the plain one's error in float32
        (spectral norm, up to five of Muon's or of fitted steps), and on gradients it is
        no worse than that in bfloat16 and float16.
      precision: of the products. None: the highest. Given without a dtype, the
        products are those of `x` on all backends.

    Returns:
      An array with the shape and dtype of `x`. Zero matrices give zero.

    Raises:
      ValueError: `x` is not floating or has fewer than two axes, `steps` is below one,
        `coeffs` are not triples for that many steps, or `normalize` or `method` is
        unknown.
    """
    x = as_floating("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (..., m, n), got {x.shape}")
    checks.one_of(("auto", "plain", "gram"), method=method)
    checks.one_of(tuple(NORMALIZATIONS), normalize=normalize)
    table = np.asarray(resolve_coefficients(coeffs, steps), np.float64)
    wide = at_least_float32(x.dtype)
    tall = x.shape[-2] > x.shape[-1]
    start = unit(x.astype(wide), (-2, -1), eps)
    unit_gram = _unit_schatten if normalize == "schatten4" else None

    def polar(y: jax.Array, dtype: DTypeLike) -> jax.Array:
        y = y.astype(at_least_float32(dtype))
        y = y.mT if tall else y
        segments = _segments(table, dtype)
        forms = ("plain", "gram") if method == "auto" else (method,)
        mm = _Products(dtype, precision)
        if min(forms, key=lambda k: flops(y.shape, segments, k, dtype)) == "plain":
            y = _plain(y, table, unit_gram, mm)
        else:
            y = _gram(y, segments, unit_gram, mm)
        return (y.mT if tall else y).astype(x.dtype)

    if dtype is None and precision is None:
        return iterate(polar, start)
    return polar(start, wide if dtype is None else dtype)


class _Products:
    """Products of what matrices are in a dtype, in their own dtype.

    Of 16 bits only the operands are, and of a factor `a I + W` only what is beside
    its diagonal: rounding `a` would reach what the matrix has no part in, and grow
    there with every step. That leaves a Gram form no worse than the plain one.
    """

    def __init__(self, dtype: DTypeLike, precision: lax.PrecisionLike):
        self._dtype = jnp.dtype(dtype)
        self._short = self._dtype.itemsize < 4
        # Of 16 bits there is nothing to split.
        usual = "default" if self._short else "highest"
        self._precision = usual if precision is None else precision

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(
            a.astype(self._dtype),
            b.astype(self._dtype),
            precision=self._precision,
            preferred_element_type=a.dtype,
        )

    def symmetric(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """`A B`, which is symmetric."""
        return self(a, b) if self._short else symmetric(self, a, b)

    def left(self, factor: jax.Array, x: jax.Array) -> jax.Array:
        """`F X`."""
        if not self._short:
            return self(factor, x)
        diagonal, rest = _off_diagonal(factor)
        return diagonal[..., :, None] * x + self(rest, x)

    def together(self, factor: jax.Array, x: jax.Array) -> jax.Array:
        """`F X` of symmetric matrices that commute."""
        return self.left(factor, x) if self._short else symmetric(self, factor, x)

    def right(self, x: jax.Array, factor: jax.Array) -> jax.Array:
        """`X F` of symmetric matrices that commute."""
        if not self._short:
            return symmetric(self, x, factor)
        diagonal, rest = _off_diagonal(factor)
        return diagonal[..., None, :] * x + self(x, rest)


def _off_diagonal(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The diagonal of each matrix, and the matrix without it."""
    outside = jnp.eye(x.shape[-1], dtype=bool)[(None,) * (x.ndim - 2)]
    return jnp.diagonal(x, axis1=-2, axis2=-1), jnp.where(outside, 0.0, x)


def flops(
    shape: tuple[int, ...], segments: list[np.ndarray], method: str, dtype: DTypeLike
) -> int:
    """FLOPs of one form on a stack of wide `(..., m, n)` matrices."""
    *stack, m, n = shape
    # Of the products whose result is symmetric.
    part = share(m) if jnp.dtype(dtype).itemsize >= 4 else 1
    wide = 2 * m * m * n
    if method == "plain":
        steps = sum(map(len, segments))
        per_matrix = steps * ((1 + part) * wide + part * 2 * m**3)
    else:
        per_matrix = sum(
            (1 + part) * wide + part * max(8 * len(s) - 6, 0) * m**3 for s in segments
        )
    return round(int(np.prod(stack)) * per_matrix)


def _segments(table: np.ndarray, dtype: DTypeLike) -> list[np.ndarray]:
    """Cuts the steps into runs over which the Gram matrix need not be made again."""
    short = jnp.dtype(dtype).itemsize < 4
    bound = _GROWTH_BOUND if short else 2 * _NOISE_BOUND / float(jnp.finfo(dtype).eps)
    segments: list[list[np.ndarray]] = []
    growth = np.inf
    # Of 16 bits from the last step on, so that what is left over comes first.
    for triple in table[::-1] if short else table:
        if growth > bound:
            segments.append([])
            growth = 1.0
        segments[-1].append(triple)
        growth *= triple[0] ** 2
    if short:
        segments = [run[::-1] for run in segments[::-1]]
    return [np.stack(run) for run in segments]


def _unit_schatten(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`R` for `X` over its Schatten norm of order four, and one over that norm.

    `X` has a Frobenius norm of one, or less where `eps` held it down: what is below
    the least possible norm stays as small as it is.
    """
    least = gram.shape[-1] ** -0.5
    wide = gram.astype(at_least_float32(gram.dtype))
    squares = jnp.sum(jnp.square(wide), axis=(-2, -1), keepdims=True)
    inverse = 1 / jnp.sqrt(jnp.maximum(squares, least**2))
    return (wide * inverse).astype(gram.dtype), jnp.sqrt(inverse).astype(gram.dtype)


def _loop(body, init, table: np.ndarray):
    """Folds `body(carry, a, b, c)` over the triples with one compiled body."""
    if len(table) < 2:
        return body(init, *map(float, table[0])) if len(table) else init
    if (table == table[0]).all():
        a, b, c = map(float, table[0])
        return lax.fori_loop(0, len(table), lambda _, x: body(x, a, b, c), init)
    dtype = jax.tree.leaves(init)[0].dtype

    def step(carry, triple):
        return body(carry, triple[0], triple[1], triple[2]), None

    return lax.scan(step, init, jnp.asarray(table, dtype))[0]


def _plain(x: jax.Array, table: np.ndarray, unit_gram, mm) -> jax.Array:

    def poly(gram, b: ArrayLike, c: ArrayLike):
        return b * gram + c * mm.symmetric(gram, gram)

    def step(x, a: ArrayLike, b: ArrayLike, c: ArrayLike):
        return a * x + mm(poly(mm.symmetric(x, x.mT), b, c), x)

    if unit_gram is None:
        return _loop(step, x, table)
    # The first X is scaled through its small factor.
    (a, b, c), table = map(float, table[0]), table[1:]
    gram, inverse = unit_gram(mm.symmetric(x, x.mT))
    x = a * inverse * x + mm(inverse * poly(gram, b, c), x)
    return _loop(step, x, table)


def _gram(x: jax.Array, segments: list[np.ndarray], unit_gram, mm) -> jax.Array:
    eye = jnp.eye(x.shape[-2], dtype=x.dtype)
    eye = jnp.broadcast_to(eye, (*x.shape[:-1], x.shape[-2]))

    def factor(r, a: ArrayLike, b: ArrayLike, c: ArrayLike):
        return a * eye + b * r + c * mm.symmetric(r, r)

    def step(carry, a: ArrayLike, b: ArrayLike, c: ArrayLike):
        q, r = carry
        z = factor(r, a, b, c)
        return mm.together(z, q), mm.right(mm.together(z, r), z)

    for table in segments:
        # The first step starts from Q = I, and the last needs no new R.
        r, inverse = mm.symmetric(x, x.mT), None
        if unit_gram is not None:
            (r, inverse), unit_gram = unit_gram(r), None
        # Python's numbers: NumPy's own would widen bfloat16 to float32.
        q = factor(r, *table[0].tolist())
        if len(table) > 1:
            r = mm.right(mm.together(q, r), q)
            q, r = _loop(step, (q, r), table[1:-1])
            q = mm.together(factor(r, *table[-1].tolist()), q)
        x = mm.left(q if inverse is None else inverse * q, x)
    return x
