"""Eigenvalues of a curvature matrix from its products with vectors: Lanczos.

A product is a function `v -> A v` of trees like the parameters, with `A` symmetric,
such as `lambda v: optlab.hvp(loss, params, v, batch)`. Everything here can be compiled,
with parameters on any mesh: a tree of vectors is cut as its parameters are.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from optlab import checks
from optlab.dtypes import at_least_float32, check_floating

PyTree = Any
Product = Callable[[PyTree], PyTree]

# Vectors beside the basis: three of the recurrence, gradient and tangents of a product.
_BESIDE = 8
# Of the largest entry: below it an off-diagonal entry is rounding alone.
_ROUNDING = 100.0


class Spectrum(NamedTuple):
    """What Lanczos says of the eigenvalues of a matrix.

    Attributes:
      values: `(draws, order)`, the Ritz values, ascending in each row.
      weights: `(draws, order)`, the share of the spectrum that each stands for; the sum
        of a row is 1.
    """

    values: jax.Array
    weights: jax.Array


def spectrum(
    product: Product, params: PyTree, key: jax.Array, *, order: int, draws: int = 1
) -> Spectrum:
    """The spectrum of a symmetric matrix, by stochastic Lanczos quadrature.

    Each draw starts with a random unit vector `v_1` and makes an orthonormal basis of
    `v_1, A v_1, A^2 v_1, ...`, in which `A` is tridiagonal::

        T = V^T A V = U diag(values) U^T            weights_i = U_{1i}^2

    For any smooth `f`, `sum_i weights_i f(values_i)` estimates `tr f(A) / P`. The
    extreme values are eigenvalues to high precision. Every vector is made orthogonal to
    all before it, twice; else rounding shows large eigenvalues several times.

    It costs `order` products a draw and `order * P` numbers of memory, which
    `largest_order` bounds.

    Args:
      product: `v -> A v`, of trees like `params`.
      params: the point, of which shapes, dtypes and layout are used. Vectors have
        float32 at least; `product` gets them in the dtypes of `params`.
      key: of the starts.
      order: steps of Lanczos, at least 1; at most as many as there are parameters
        count.
      draws: independent starts, worked through one after another.

    Returns:
      The Ritz values and weights, `(draws, min(order, P))`, float32 or wider.

    Raises:
      ValueError: `order` or `draws` is no integer of at least 1, or there are no
        parameters, or others than floating ones.

    References:
      Sagun et al., `Empirical Analysis of the Hessian of Over-Parametrized Neural
      Networks <https://arxiv.org/abs/1706.04454>`_; Ghorbani et al., `An Investigation
      into Neural Net Optimization via Hessian Eigenvalue Density
      <https://arxiv.org/abs/1901.10159>`_, whose code is google/spectral-density.
    """
    checks.positive_int(order=order, draws=draws)
    size = _size(params)
    order = min(order, size)
    wrapped = _in_own_dtypes(product, params)

    def draw(key):
        start = _random_unit(key, params)
        diagonal, beside = _lanczos(wrapped, start, order)
        values, vectors = jnp.linalg.eigh(_tridiagonal(diagonal, beside))
        weights = jnp.square(vectors[0])
        return Spectrum(values, weights / jnp.sum(weights))

    return jax.lax.map(draw, jax.random.split(key, draws))


def density(found: Spectrum, points: int = 1000) -> tuple[jax.Array, jax.Array]:
    """The density of eigenvalues: a sum of narrow normal densities, mean over draws.

    Their variance is `1e-5 max(1, range)`, as in google/spectral-density. A matrix
    whose eigenvalues are all small needs other units to show more than one peak.

    Args:
      found: from `spectrum`.
      points: of the grid, at least 2.

    Returns:
      The grid `(points,)` in the units of the eigenvalues, a little wider than their
      range, and the density `(points,)`, mean over each cell; its integral is 1.

    Raises:
      ValueError: `points` is no integer of at least 2.
    """
    checks.positive_int(points=points)
    if points < 2:
        raise ValueError(f"points must be an integer >= 2, got {points!r}")
    values, weights = found
    low, high = jnp.min(values), jnp.max(values)
    variance = 1e-5 * jnp.maximum(1.0, high - low)
    deviation = jnp.sqrt(variance)
    grid = jnp.linspace(low - 5 * deviation, high + 5 * deviation, points)
    width = grid[1] - grid[0]
    # Means over the cells of the grid, which may be wider than a peak.
    edges = jnp.append(grid - width / 2, grid[-1] + width / 2)
    below = ndtr((edges[:, None, None] - values[None]) / deviation)
    share = jnp.mean(jnp.sum(weights[None] * jnp.diff(below, axis=0), -1), -1)
    return grid, share / (jnp.sum(share) * width)


def top_eigenvalue(
    product: Product, params: PyTree, key: jax.Array, *, steps: int = 64
) -> jax.Array:
    """The largest eigenvalue of a symmetric matrix, with three vectors of memory.

    The largest Ritz value of Lanczos without reorthogonalisation: rounding may repeat
    a large eigenvalue there, which leaves the largest as it is. Of the Hessian it is
    the sharpness. It comes from below and converges quickly, since the largest
    eigenvalues of a network stand apart.

    Args:
      product: as of `spectrum`.
      params: as of `spectrum`.
      key: of the start.
      steps: products to make, at least 1.

    Returns:
      A scalar in the units of `A`.

    Raises:
      ValueError: `steps` is no integer of at least 1, or there are no parameters, or
        others than floating ones.
    """
    checks.positive_int(steps=steps)
    steps = min(steps, _size(params))
    start = _random_unit(key, params)
    diagonal, beside = _short_lanczos(_in_own_dtypes(product, params), start, steps)
    return jnp.linalg.eigvalsh(_tridiagonal(diagonal, beside))[-1]


def largest_order(params: PyTree, budget_bytes: float) -> int:
    """The largest `order` whose vectors fit into a number of bytes, on all devices.

    Args:
      params: arrays or their shapes.
      budget_bytes: for the basis and what goes beside it; the activations of a product
        come on top.

    Raises:
      ValueError: not even two vectors fit; the message has the bytes that they need.
    """
    leaves = jax.tree.leaves(params)
    vector = sum(x.size * at_least_float32(x.dtype).itemsize for x in leaves)
    order = int(budget_bytes // max(vector, 1)) - _BESIDE
    if order < 2:
        raise ValueError(
            f"budget_bytes must be at least {(_BESIDE + 2) * vector:,} for two vectors "
            f"of Lanczos, got {budget_bytes:,.0f}"
        )
    return order


def _size(params: PyTree) -> int:
    check_floating("params", params)
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    if not size:
        raise ValueError("params must have at least one entry, got none")
    return size


def _in_own_dtypes(product: Product, params: PyTree) -> Product:
    """The product of vectors of float32 at least, which sees those of `params`."""

    def wide(v):
        found = product(jax.tree.map(lambda x, p: x.astype(p.dtype), v, params))
        return jax.tree.map(lambda x, like: x.astype(like.dtype), found, v)

    return wide


def _random_unit(key: jax.Array, params: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, x.shape, at_least_float32(x.dtype))
        for k, x in zip(keys, leaves, strict=True)
    ]
    v = treedef.unflatten(drawn)
    return _scaled(v, 1 / jnp.sqrt(dot(v, v)))


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The inner product of two trees, in float32 at least; layouts are kept."""
    # Not a `vdot`: it flattens, which gathers what a mesh has cut.
    parts = [
        jnp.sum(x.astype(at_least_float32(x.dtype)) * y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(parts[1:], parts[0])


def _scaled(tree: PyTree, factor: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def _minus(a: PyTree, factor: jax.Array, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x - factor.astype(x.dtype) * y, a, b)


def _tridiagonal(diagonal: jax.Array, beside: jax.Array) -> jax.Array:
    inner = beside[: len(diagonal) - 1]
    return jnp.diag(diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)


def _lanczos(product: Product, start: PyTree, order: int):
    """Diagonal and off-diagonal of T, with full reorthogonalisation."""
    basis = jax.tree.map(lambda v: jnp.zeros((order, *v.shape), v.dtype), start)

    def along(basis, w):
        parts = [
            jnp.sum(b * x[None], axis=tuple(range(1, b.ndim)))
            for b, x in zip(jax.tree.leaves(basis), jax.tree.leaves(w), strict=True)
        ]
        return sum(parts[1:], parts[0])

    def without(basis, w):
        shares = along(basis, w)

        def rest(b, x):
            own = shares.astype(x.dtype).reshape(-1, *(1,) * x.ndim)
            return x - jnp.sum(own * b, axis=0)

        return jax.tree.map(rest, basis, w)

    def step(i, carry):
        basis, v, diagonal, beside = carry
        basis = jax.tree.map(lambda b, x: b.at[i].set(x), basis, v)
        w = product(v)
        alpha = dot(v, w)
        # Where the space is used up, v is zero: a value that is there already.
        alpha = jnp.where(dot(v, v) > 0, alpha, diagonal[0])
        w = without(basis, without(basis, w))
        v, beta = _next(w, alpha, jnp.where(i > 0, beside[i - 1], 0))
        return basis, v, diagonal.at[i].set(alpha), beside.at[i].set(beta)

    numbers_ = jnp.zeros(order, dot(start, start).dtype)
    found = jax.lax.fori_loop(0, order, step, (basis, start, numbers_, numbers_))
    return found[2], found[3]


def _short_lanczos(product: Product, start: PyTree, steps: int):
    """The same with the three vectors of the recurrence alone."""

    def step(i, carry):
        last, v, diagonal, beside = carry
        before = jnp.where(i > 0, beside[i - 1], 0)
        w = _minus(product(v), before, last)
        alpha = jnp.where(dot(v, v) > 0, dot(v, w), diagonal[0])
        w = _minus(w, alpha, v)
        new, beta = _next(w, alpha, before)
        return v, new, diagonal.at[i].set(alpha), beside.at[i].set(beta)

    zeros = jax.tree.map(jnp.zeros_like, start)
    numbers_ = jnp.zeros(steps, dot(start, start).dtype)
    found = jax.lax.fori_loop(0, steps, step, (zeros, start, numbers_, numbers_))
    return found[2], found[3]


def _next(w: PyTree, alpha: jax.Array, before: jax.Array):
    """The next unit vector and its entry of T; zeros where the rest is rounding."""
    beta = jnp.sqrt(dot(w, w))
    least = _ROUNDING * jnp.finfo(beta.dtype).eps * (jnp.abs(alpha) + before)
    good = beta > least
    inverse = jnp.where(good, 1 / jnp.where(good, beta, 1), 0)
    return _scaled(w, inverse), jnp.where(good, beta, 0)
