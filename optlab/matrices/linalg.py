"""Linear algebra of the matrix methods: arrays in, arrays out, stacks in front.

Products are exact, but those of `subspace_step`, see :mod:`optlab.matrices.precision`.
"""

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optlab.matrices.exponents import power_below
from optlab.matrices.precision import Kind, Passes, gram_matrix, product

# Of `nuclear_norm_estimate`: its cost is `4 m n` FLOPs times both.
_PROBES = 8
_LANCZOS_STEPS = 8


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0, where its own is infinite.

    Of a sum of squares that is the derivative of least length, and what multiplies it
    is 0 there.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    slope = 0.5 / jnp.where(root == 0, 1.0, root)
    return root, jnp.where(root == 0, 0.0, slope) * dx


# Traced once for each shape, and a part of the caller's program.
_traced_once = partial(jax.jit, inline=True)


@partial(_traced_once, static_argnames=("axis", "keepdims"))
def frobenius_norm(x: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
    """Root of the sum of squares, without overflow or underflow of the squares."""
    y, scale = _near_one(x, axis)
    norm = _plain_norm(y, axis) * scale
    return norm if keepdims else jnp.squeeze(norm, axis)


def _near_one(x: jax.Array, axis: Any) -> tuple[jax.Array, jax.Array]:
    """`x` over a scale that leaves its largest entry near one, and that scale."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0)
    # A power of two, so that the division is exact, and neither itself nor its inverse,
    # by which compilers divide, a subnormal: devices take those for 0.
    least = 2.0 ** int(jnp.finfo(x.dtype).minexp)
    power = jnp.minimum(jnp.maximum(power_below(largest), least), 1 / least)
    scale = lax.select(largest == 0, jnp.ones_like(power), power)
    return x / scale, scale


def _plain_norm(x: jax.Array, axis: Any) -> jax.Array:
    return safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True))


@partial(_traced_once, static_argnames="axis")
def unit(x: jax.Array, axis: Any, eps: ArrayLike = 0.0) -> jax.Array:
    """`X / (|X|_F + eps)`, right where the norm itself would overflow; 0 at 0."""
    y, scale = _near_one(x, axis)
    norm = _plain_norm(y, axis) + eps / scale
    return y / jnp.where(norm > 0, norm, 1.0)


@_traced_once
def cap_norm(x: jax.Array) -> jax.Array:
    """Scales matrices `(..., m, n)` down to where products of two cannot overflow.

    The cap is `finfo.max ** 0.4` (3e15 in float32), beyond any gradient that still
    means something; below it the matrix comes back to the bit.
    """
    cap = float(jnp.finfo(x.dtype).max) ** 0.4
    y, scale = _near_one(x, (-2, -1))
    norm = _plain_norm(y, (-2, -1))
    above = norm > cap / scale
    # Never `cap / norm / scale`: XLA makes `cap / (norm * scale)` of that.
    factor = jnp.where(above, cap / jnp.where(above, norm, 1.0), 1.0)
    return x * (factor / jnp.where(above, scale, 1.0))


def _one_at_a_time(factorize: Callable[..., Any]) -> Callable[..., Any]:
    """`factorize` of equal stacks of matrices; on CPUs of one matrix after the other.

    There jaxlib shares a batch out over XLA's threads and waits on one of them. As many
    batches at once as there are threads, one a core, wait for good (jaxlib 0.10.2): of
    QR, Cholesky, `eigh` and triangular systems, not of singular values.
    """

    def in_turn(*stacks: jax.Array) -> Any:
        *stack, _, _ = stacks[0].shape
        flat = [x.reshape(math.prod(stack), *x.shape[-2:]) for x in stacks]
        out = lax.map(lambda matrices: factorize(*matrices), flat)
        return jax.tree.map(lambda x: x.reshape(*stack, *x.shape[1:]), out)

    @wraps(factorize)
    def chosen(*stacks: jax.Array) -> Any:
        if stacks[0].ndim == 2:
            return factorize(*stacks)
        return lax.platform_dependent(*stacks, cpu=in_turn, default=factorize)

    return chosen


@_one_at_a_time
def _divided(x: jax.Array, r: jax.Array) -> jax.Array:
    """`X R^-1` of upper triangular `R`."""
    return lax.linalg.triangular_solve(r, x, left_side=False, lower=False)


@jax.custom_jvp
@_one_at_a_time
def _householder(x: jax.Array) -> jax.Array:
    """The orthogonal factor of the reduced QR."""
    return jnp.linalg.qr(x)[0]


def _orthogonal_tangent(x: jax.Array, q: jax.Array, dx: jax.Array) -> jax.Array:
    """The derivative of the orthogonal factor `Q` of `X = Q R`.

    A column that depends on earlier ones has an arbitrary one in `Q`, whose derivative
    is taken as zero.
    """
    r = product(q.mT, x)
    pivots = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    lengths = jnp.max(jnp.abs(x), axis=-2) * math.sqrt(x.shape[-2])
    good = pivots > 1e3 * float(jnp.finfo(x.dtype).eps) * lengths
    eye = jnp.broadcast_to(jnp.eye(r.shape[-1], dtype=r.dtype), r.shape)
    r = jnp.where(good[..., None, :] & good[..., :, None], jnp.triu(r), eye)
    moved = _divided(jnp.where(good[..., None, :], dx, 0.0), r)
    inside = product(q.mT, moved)
    lower = jnp.tril(inside, -1)
    return moved - product(q, inside) + product(q, lower - lower.mT)


@_householder.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    q = _householder(x)
    return q, _orthogonal_tangent(x, q, dx)


@jax.custom_jvp
@_one_at_a_time
def _eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of symmetric matrices, in ascending order.

    The derivative leaves vectors of one eigenvalue as they are within their span,
    which is right for whatever does not depend on the choice among them.
    """
    values, vectors = jnp.linalg.eigh(x)
    return values, vectors


@_eigh.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    values, vectors = _eigh(x)
    inside = product(vectors.mT, product((dx + dx.mT) / 2, vectors))
    gaps = values[..., None, :] - values[..., :, None]
    largest = jnp.max(jnp.abs(values), axis=-1)[..., None, None]
    least = 1e2 * float(jnp.finfo(x.dtype).eps) * largest
    apart = jnp.abs(gaps) > least
    turn = jnp.where(apart, inside / jnp.where(apart, gaps, 1.0), 0.0)
    new = jnp.diagonal(inside, axis1=-2, axis2=-1), product(vectors, turn)
    return (values, vectors), new


@_one_at_a_time
def _whiten(x: jax.Array, gram: jax.Array) -> jax.Array:
    """`X L^-T` of `gram = L L^T`; NaN if that is not positive definite."""
    factor = lax.linalg.cholesky(gram)
    return lax.linalg.triangular_solve(
        factor, x, left_side=False, lower=True, transpose_a=True
    )


def leading_left_singular_vectors(x: jax.Array, rank: int) -> jax.Array:
    """The first `rank` left singular vectors of `(..., m, n)`, as `(..., m, rank)`.

    They come from the smaller of the two Gram matrices, in descending order. Where
    the singular value is zero any orthonormal completion is returned.
    """
    m, n = x.shape[-2:]
    if m <= n:
        vectors = _eigh(gram_matrix(x))[1]
        return vectors[..., ::-1][..., :rank]
    vectors = _eigh(gram_matrix(x.mT))[1]
    images = product(x, vectors[..., ::-1][..., :rank])
    return orthonormal_basis(images)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def orthonormal_basis(
    x: jax.Array, kind: Kind = "exact", passes: Passes | None = None
) -> jax.Array:
    """The orthogonal factor of the reduced QR of `(..., m, r)`, `r <= m`.

    Columns keep their span's order: the first `k` of the result span the first `k`
    of `x`, each with either sign. Rank-deficient input gives orthonormal columns
    all the same.

    Cholesky's factor of the Gram matrix, twice, on columns of unit length: products
    and `(r, r)` factors alone. Where the columns are too close to dependent for that,
    Householder's reflections do the whole stack. No shift is added to the Gram matrix:
    unit columns leave no scale for it to follow, and where only a shift would let
    Cholesky through, the reflections are exact and need no third pass. The Gram
    matrices are products of that kind, see :mod:`optlab.matrices.precision`.

    References:
      Fukaya et al., *CholeskyQR2: a simple and communication-avoiding algorithm*,
      ScalA, 2014.
    """
    lengths = frobenius_norm(x, axis=-2, keepdims=True)
    x_unit = x / jnp.where(lengths > 0, lengths, 1.0)
    once = _whiten(x_unit, product(x_unit.mT, x_unit, kind, passes))
    gram = product(once.mT, once, kind, passes)
    twice = _whiten(once, gram)
    # What the first pass left decides how exact the second one is; NaN fails as well.
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    excess = jnp.abs(gram - jnp.broadcast_to(eye, gram.shape))
    good = jnp.all(jnp.sum(excess, axis=-1) < 0.5)
    return lax.cond(good, lambda: twice, lambda: _householder(x))


@orthonormal_basis.defjvp
def _(kind, passes, primals, tangents):
    (x,), (dx,) = primals, tangents
    q = orthonormal_basis(x, kind, passes)
    return q, _orthogonal_tangent(x, q, dx)


def subspace_step(
    basis: jax.Array,
    covariance: jax.Array,
    x: jax.Array,
    decay: ArrayLike,
    passes: Passes | None = None,
) -> jax.Array:
    """One step of subspace iteration for a decaying average of `X X^T`.

    The average is held in its own basis, `U S U^T`, and the new basis is that of
    `decay U S + (1 - decay) X (X^T U)`, so that no `(m, m)` matrix is formed.

    Args:
      basis: `U`, shape `(..., m, r)`, orthonormal columns.
      covariance: `S`, shape `(..., r, r)`.
      x: the new matrix, shape `(..., m, n)`.
      decay: weight of the past, in `[0, 1)`.
      passes: of the products, see :func:`optlab.matrices.precision.product`.

    Returns:
      The new basis, shape `(..., m, r)`.
    """

    def mm(a: jax.Array, b: jax.Array) -> jax.Array:
        return product(a, b, "basis", passes)

    average = decay * mm(basis, covariance) + (1 - decay) * mm(x, mm(x.mT, basis))
    return orthonormal_basis(jnp.asarray(average), "basis", passes)


def eigenbasis(gram: jax.Array, rank: int | None = None) -> jax.Array:
    """Eigenvectors of symmetric `(..., m, m)` as columns, largest eigenvalue first.

    With `rank` below `m` the others, of a null space, are the completion that leans
    on the first coordinates, so that it is the same however the matrix was rounded.
    """
    vectors = _eigh(_unit_scale(gram))[1][..., ::-1]
    m = gram.shape[-1]
    if rank is None or rank >= m:
        return vectors
    axes = jnp.broadcast_to(
        jnp.eye(m, m - rank, dtype=gram.dtype), (*gram.shape[:-1], m - rank)
    )
    return _householder(jnp.concatenate([vectors[..., :rank], axes], -1))


def refresh_eigenbasis(
    gram: jax.Array, basis: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of the QR algorithm towards the eigenvectors of `A = gram`.

    The columns of `Q = basis` are sorted by `diag(Q^T A Q)`, the largest first, and
    the new basis is that of `A Q`.

    Args:
      gram: `A`, symmetric, shape `(..., m, m)`.
      basis: `Q`, orthonormal columns, shape `(..., m, m)`.

    Returns:
      The new basis and the order of the old columns in it, shape `(..., m)`: what is
      kept in the old basis is to be permuted alike.
    """
    power = product(_unit_scale(gram), basis)
    order = jnp.argsort(-jnp.sum(basis * power, axis=-2), axis=-1)
    power = jnp.take_along_axis(power, order[..., None, :], axis=-1)
    # Householder's: the condition of a preconditioner is far beyond Cholesky.
    return _householder(power), order


def qr_step(gram: jax.Array, basis: jax.Array) -> jax.Array:
    """The basis of `A Q`, column by column, without a sort."""
    return _householder(product(_unit_scale(gram), basis))


def _unit_scale(x: jax.Array) -> jax.Array:
    """Matrices over their largest entry, so that no factorisation overflows."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    return x / jnp.where(largest > 0, largest, 1.0)


@partial(jnp.vectorize, signature="(m,n)->()")
def nuclear_norm_estimate(x: jax.Array) -> jax.Array:
    """The nuclear norm of `(..., m, n)`, about, from a few products with vectors.

    It is the trace of `f(A) = A^(1/2)`, `A = X X^T`, which Lanczos quadrature takes on
    a few fixed orthonormal probes; their error is cut down by what they miss of
    `tr A = |X|_F^2`. Gauss' rule lies above the trace and Radau's, with a node at 0,
    below it, so their mean is taken. On noise it is within 3%; on spectra that fall
    over several orders of magnitude within 10%. Slow for `m > n`: pass the transpose.

    References:
      Ubaru et al., *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*,
      SIAM J. Matrix Anal. Appl., 2017.
    """
    m = x.shape[0]
    probes = np.random.default_rng(0).standard_normal((m, min(m, _PROBES)))
    start = jnp.asarray(np.linalg.qr(probes)[0], x.dtype)
    norm = frobenius_norm(x)
    y = x / jnp.where(norm > 0, norm, 1.0)
    least = 10 * float(jnp.finfo(x.dtype).eps)

    def step(carry, _):
        before, v, off, pivot = carry
        w = product(y, product(y.mT, v)) - off * before
        diagonal = jnp.sum(v * w, 0, keepdims=True)
        w = w - diagonal * v
        # Of the tridiagonal matrix so far, as in its LDL^T.
        pivot = diagonal - jnp.square(off) / jnp.where(pivot > 0, pivot, 1.0)
        off = safe_sqrt(jnp.sum(jnp.square(w), 0, keepdims=True))
        # The space is exhausted where rounding is left of it.
        off = jnp.where(off > least, off, 0.0)
        new = jnp.where(off > 0, w / jnp.where(off > 0, off, 1.0), 0.0)
        return (v, new, off, pivot), (diagonal[0], off[0])

    zero = jnp.zeros_like(start[:1])
    carry = (jnp.zeros_like(start), start, zero, zero)
    (*_, pivot), (diagonal, off) = lax.scan(step, carry, length=_LANCZOS_STEPS)
    last = jnp.square(off[-1:]) / jnp.where(pivot > 0, pivot, 1.0)
    rules = [
        _quadrature(diagonal, off[:-1]),
        _quadrature(jnp.concatenate([diagonal, last]), off),
    ]
    nodes, weights = (jnp.concatenate(x, axis=-1) for x in zip(*rules, strict=True))
    weights = weights * (m / start.shape[1] / len(rules))
    values = safe_sqrt(jnp.maximum(nodes, 0.0))
    first, second, third, fourth = (jnp.sum(weights * values**k) for k in (1, 2, 3, 4))
    # The covariance of the probes' error in tr A^(1/2) with that in tr A = 1.
    slope = third / jnp.where(fourth > 0, fourth, 1.0)
    return norm * jnp.clip(first - slope * (second - 1), 1.0, math.sqrt(m))


def _quadrature(diagonal: jax.Array, off: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights `(probes, k)` from `(k, probes)` and `(k - 1, probes)`."""
    eye, above = (jnp.eye(len(diagonal), k=k, dtype=off.dtype)[None] for k in (0, 1))
    upper = above * jnp.pad(off.T, ((0, 0), (0, 1)))[:, :, None]
    nodes, vectors = _eigh(eye * diagonal.T[:, :, None] + upper + upper.mT)
    return nodes, jnp.square(vectors[:, 0])
