"""SOAP's step with the factors of KL-Shampoo: each side whitened by the other.

Shampoo's `L` is an average of `G G^T`; here it is one of `G R^-1 G^T / d_out`, and `R`
one of `G^T L^-1 G / d_in`, which makes the Kronecker product of the two the closest to
the gradients' covariance. The inverses come from the bases and the eigenvalues that
the last step left. A side that keeps the identity has one eigenvalue for all of it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optlab.matrices.linalg import (
    cap_norm,
    eigenbasis,
    frobenius_norm,
    qr_step,
    safe_sqrt,
)
from optlab.matrices.precision import Passes, gram_matrix, product

# The least eigenvalue of a side, as a share of its largest.
_LEAST = 4000.0**-2


def _sides(bases: tuple[jax.Array, ...], g: jax.Array) -> tuple[bool, bool]:
    left, right = (q.shape[-1] == d for q, d in zip(bases, g.shape[1:], strict=True))
    return left, right


def _rotate(
    y: jax.Array, bases: tuple[jax.Array, ...], passes: Passes | None
) -> jax.Array:
    """`Q_L^T Y Q_R`."""
    left, right = _sides(bases, y)
    y = product(bases[0].mT, y, "rotation", passes) if left else y
    return product(y, bases[1], "rotation", passes) if right else y


def _rotate_back(
    y: jax.Array, bases: tuple[jax.Array, ...], passes: Passes | None
) -> jax.Array:
    """`Q_L Y Q_R^T`."""
    left, right = _sides(bases, y)
    y = product(bases[0], y, "rotation", passes) if left else y
    return product(y, bases[1].mT, "rotation", passes) if right else y


def _products(
    for_left: jax.Array, for_right: jax.Array, sides: tuple[bool, bool]
) -> tuple[jax.Array, jax.Array]:
    """`X X^T / n` and `Y^T Y / m`; of a side without a basis the mean square."""
    m, n = for_left.shape[1:]
    left = gram_matrix(for_left) / n if sides[0] else _square(for_left)
    right = gram_matrix(for_right.mT) / m if sides[1] else _square(for_right)
    return left, right


def _square(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x), (-2, -1), keepdims=True)


def _whitened(
    g: jax.Array, bases: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """`G R^-1 G^T / n` and `G^T L^-1 G / m`."""
    sides = _sides(bases, g)
    by_right = product(g, bases[1]) if sides[1] else g
    by_left = product(bases[0].mT, g) if sides[0] else g
    roots = map(safe_sqrt, map(_positive, values))
    by_left, by_right = (x / r for x, r in zip((by_left, by_right), roots, strict=True))
    return _products(by_right, by_left, sides)


def _positive(values: jax.Array) -> jax.Array:
    """Eigenvalues to divide by; what fills up a stack on a mesh has none."""
    return jnp.where(values > 0, values, 1.0)


def _mean(x: jax.Array, side: int, active: bool) -> jax.Array:
    """Over the other side, or over both: `(S, m, 1)`, `(S, 1, n)` or `(S, 1, 1)`."""
    return jnp.mean(x, (-1 - side if active else (-2, -1)), keepdims=True)


def kl_directions(
    gradient: jax.Array,
    momentum: jax.Array,
    *factors: jax.Array,
    count: jax.Array,
    b1: Any,
    b2: Any,
    eps: Any,
    beta: Any,
    interval: int,
    initial: Any,
    basis_precision: Passes | None,
) -> tuple[jax.Array, ...]:
    """One call on a stack `(S, m, n)`: the direction, then the factors, renewed.

    The eigenvalues are averages of `mean(G'^2 / l)` of the other side, which start
    flat, at `initial`, or at the root mean square of the first gradient: then the first
    factors are divided by it too, and no step depends on the gradients' scale.

    Args:
      gradient: `G`.
      momentum: `M`, in the original space.
      *factors: `V` (S, m, n), `L`, `R`, `Q_L`, `Q_R`, `l_L` (S, m, 1), `l_R` (S, 1, n).
      count: of the calls before this one; the first only initialises.
      b1, b2: of the moments.
      eps: added to the root of the second moment.
      beta: decay of the factors and of their eigenvalues.
      interval: steps from one refresh of the bases to the next.
      initial: the first eigenvalues, or None.
      basis_precision: of the rotations.
    """
    g, x = cap_norm(gradient), cap_norm(momentum)
    nu, grams, bases, values = factors[0], factors[1:3], factors[3:5], factors[5:7]
    sides = _sides(bases, g)

    def initialise():
        size = frobenius_norm(g, (-2, -1), True) / math.sqrt(g.shape[1] * g.shape[2])
        size = jnp.where(size > 0, size, 1.0)
        flat = size if initial is None else jnp.full_like(size, initial)
        terms = _products(g, g, sides)
        first = tuple(t / size if initial is None else t for t in terms)
        found = tuple(
            eigenbasis(a, min(g.shape[1:])) if active else q
            for a, q, active in zip(first, bases, sides, strict=True)
        )
        spread = tuple(jnp.broadcast_to(flat, v.shape) for v in values)
        return jnp.zeros_like(g), nu, *first, *found, *spread

    def step():
        projected = _rotate(g, bases, basis_precision)
        new_nu = b2 * nu + (1 - b2) * jnp.square(projected)
        adapted = _rotate(x, bases, basis_precision) / (safe_sqrt(new_nu) + eps)
        t = count.astype(g.dtype)
        size = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        direction = size * _rotate_back(adapted, bases, basis_precision)
        new = tuple(
            beta * a + (1 - beta) * term
            for a, term in zip(grams, _whitened(g, bases, values), strict=True)
        )
        seen = (
            beta * own
            + (1 - beta) * _mean(jnp.square(projected) / _positive(other), side, active)
            for side, (own, other, active) in enumerate(
                zip(values, values[::-1], sides, strict=True)
            )
        )
        spread = tuple(
            jnp.maximum(v, _LEAST * jnp.max(v, (-2, -1), keepdims=True)) for v in seen
        )

        def refresh():
            return tuple(
                qr_step(a, q) if active else q
                for a, q, active in zip(new, bases, sides, strict=True)
            )

        # A scalar: under vmap both branches would run.
        turned = lax.cond(count % interval == 0, refresh, lambda: bases)
        return direction, new_nu, *new, *turned, *spread

    return lax.cond(count == 0, initialise, step)


def v3_directions(
    gradient: jax.Array,
    momentum: jax.Array,
    *factors: jax.Array,
    count: jax.Array,
    b1: Any,
    b2: Any,
    eps: Any,
    beta: Any,
    exact: bool,
    basis_precision: Passes | None,
    **unused: Any,
) -> tuple[jax.Array, ...]:
    """The same by Emerging-Optimizers' KlSoapV3, or by its ReklsV3 if `exact`.

    It steps from the first call on, in bases that this step's factors have been through
    already. The factors are exact weighted means; the eigenvalues are those of the
    factors, 0 at first, and at least `eps` where they divide.
    """
    del unused
    g, x = cap_norm(gradient), cap_norm(momentum)
    nu, grams, bases, values = factors[0], factors[1:3], factors[3:5], factors[5:7]
    sides = _sides(bases, g)
    eye = (
        jnp.broadcast_to(jnp.eye(q.shape[-1], dtype=q.dtype), q.shape) for q in bases
    )
    bases = tuple(jnp.where(count == 0, i, q) for i, q in zip(eye, bases, strict=True))
    t = (count + 1).astype(g.dtype)
    weight = (1 - beta) / (1 - beta**t)
    terms = _whitened(g, bases, tuple(jnp.maximum(v, eps) for v in values))
    grams = tuple(
        (1 - weight) * a + weight * b for a, b in zip(grams, terms, strict=True)
    )

    def turned(side: int) -> tuple[jax.Array, jax.Array]:
        gram, basis = grams[side], bases[side]
        if not sides[side]:
            return basis, gram
        if exact:
            new = eigenbasis(gram)
        else:
            new = lax.cond(
                count == 0, lambda: eigenbasis(gram), lambda: qr_step(gram, basis)
            )
        eigenvalues = jnp.sum(new * product(gram, new), -2)
        order = jnp.argsort(-eigenvalues, axis=-1)
        new = jnp.take_along_axis(new, order[..., None, :], -1)
        eigenvalues = jnp.take_along_axis(eigenvalues, order, -1)
        return new, jnp.expand_dims(eigenvalues, -1 - side)

    found = [turned(side) for side in (0, 1)]
    bases = tuple(basis for basis, _ in found)
    nu = b2 * nu + (1 - b2) * jnp.square(_rotate(g, bases, basis_precision))
    mean = _rotate(x, bases, basis_precision) / (1 - b1**t)
    adapted = mean / (safe_sqrt(nu / (1 - b2**t)) + eps)
    direction = _rotate_back(adapted, bases, basis_precision)
    return direction, nu, *grams, *bases, *(v for _, v in found)
