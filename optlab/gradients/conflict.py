"""Gradients of several losses: whether they conflict, and one step that serves all."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import checks
from optlab.dtypes import at_least_float32, check_floating

PyTree = Any


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """The cosine of the angle between two gradients; 0 where one of them is zero.

    Args:
      a: a tree of arrays.
      b: another one of the same structure.

    Returns:
      A scalar in [-1, 1].

    Raises:
      ValueError: a leaf is not floating.
    """
    check_floating("a", a)
    check_floating("b", b)
    norms = jnp.sqrt(_dot(a, a)) * jnp.sqrt(_dot(b, b))
    return jnp.where(norms > 0, _dot(a, b) / jnp.where(norms > 0, norms, 1), 0.0)


def realign(grads: Sequence[PyTree]) -> list[PyTree]:
    """Gradients of which no two of a pair conflict: each loses what is against another.

    Where `<g_i, g_j> < 0`, `g_i` is replaced by `g_i - <g_i, g_j> / |g_j|^2 g_j`. For
    two gradients both are projected on what the other one leaves free, and the sum is
    a descent direction of both losses. With more, each goes through the others in
    their order, and all see the others as they were given.

    Args:
      grads: at least two trees of the same structure.

    Returns:
      As many trees, in the dtypes that they came in. Add them for the step.

    Raises:
      ValueError: there are fewer than two gradients, or a leaf is not floating.

    References:
      `Rethinking Gradient Projection Continual Learning: Gradient Harmonization
      <https://arxiv.org/abs/2211.02077>`_; Yu et al., `Gradient Surgery for Multi-Task
      Learning <https://arxiv.org/abs/2001.06782>`_, for more than two.
    """
    _check(grads)
    squares = [_dot(g, g) for g in grads]
    made = []
    for i, g in enumerate(grads):
        own = g
        for j, other in enumerate(grads):
            if i != j:
                inner = jnp.minimum(_dot(own, other), 0)
                share = inner / jnp.where(squares[j] > 0, squares[j], 1)
                own = _plus(own, -share, other)
        made.append(own)
    return made


class MinNorm(NamedTuple):
    """The point of least norm in the convex hull of gradients.

    Attributes:
      point: the tree; zero at a Pareto-stationary point, and else a descent direction
        of every loss.
      weights: `(n,)`, of each gradient in it; at least 0, with a sum of 1.
    """

    point: PyTree
    weights: jax.Array


def min_norm(grads: Sequence[PyTree], *, steps: int = 100) -> MinNorm:
    """The shortest convex combination of gradients.

    For two in closed form: `w g1 + (1-w) g2` with
    `w = clip(<g2 - g1, g2> / |g1 - g2|^2, 0, 1)`. For more by the Frank-Wolfe method
    with pairwise steps, which converges at a linear rate, on their Gram matrix.

    Args:
      grads: at least two trees of the same structure.
      steps: of Frank-Wolfe.

    Raises:
      ValueError: there are fewer than two gradients, a leaf is not floating, or
        `steps` is no integer >= 1.

    References:
      Sener and Koltun, `Multi-Task Learning as Multi-Objective Optimization
      <https://arxiv.org/abs/1810.04650>`_; Lacoste-Julien and Jaggi, `On the Global
      Linear Convergence of Frank-Wolfe Optimization Variants
      <https://arxiv.org/abs/1511.05932>`_.
    """
    _check(grads)
    checks.positive_int(steps=steps)
    gram = jnp.stack([jnp.stack([_dot(a, b) for b in grads]) for a in grads])
    solve = _closest_of_two if len(grads) == 2 else _closest_of_many
    weights = solve(gram, steps)
    point = jax.tree.map(jnp.zeros_like, grads[0])
    for share, g in zip(weights, grads, strict=True):
        point = _plus(point, share, g)
    return MinNorm(point, weights)


def _closest_of_two(gram: jax.Array, steps: int) -> jax.Array:
    del steps
    apart = gram[0, 0] - 2 * gram[0, 1] + gram[1, 1]
    share = (gram[1, 1] - gram[0, 1]) / jnp.where(apart > 0, apart, 1)
    share = jnp.where(apart > 0, jnp.clip(share, 0, 1), 0.5)
    return jnp.stack([share, 1 - share])


def _closest_of_many(gram: jax.Array, steps: int) -> jax.Array:
    count = len(gram)

    def step(_, weights):
        slope = gram @ weights
        to = jnp.argmin(slope)
        away = jnp.argmax(jnp.where(weights > 0, slope, -jnp.inf))
        move = jax.nn.one_hot(to, count, dtype=weights.dtype)
        move = move - jax.nn.one_hot(away, count, dtype=weights.dtype)
        curvature = move @ gram @ move
        length = -(move @ slope) / jnp.where(curvature > 0, curvature, 1)
        most = weights[away]
        length = jnp.where(curvature > 0, jnp.clip(length, 0, most), 0)
        # To the bit: what has been taken away whole must not be taken from again.
        weights = weights.at[to].add(length)
        return weights.at[away].set(jnp.where(length == most, 0, most - length))

    start = jax.nn.one_hot(jnp.argmin(jnp.diag(gram)), count, dtype=gram.dtype)
    # Where both ends are the same entry nothing moves.
    return jax.lax.fori_loop(0, steps, lambda i, w: _kept(step(i, w), w, gram), start)


def _kept(new: jax.Array, old: jax.Array, gram: jax.Array) -> jax.Array:
    """The new weights, unless the slope is the same at all that have one."""
    slope = gram @ old
    same = jnp.argmin(slope) == jnp.argmax(jnp.where(old > 0, slope, -jnp.inf))
    return jnp.where(same, old, new)


def _check(grads: Sequence[PyTree]) -> None:
    if len(grads) < 2:
        raise ValueError(f"grads must be at least two trees, got {len(grads)}")
    check_floating("grads", grads)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    parts = [
        jnp.sum(x.astype(at_least_float32(x.dtype)) * y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(parts[1:], parts[0])


def _plus(a: PyTree, factor: jax.Array, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + factor.astype(x.dtype) * y, a, b)
