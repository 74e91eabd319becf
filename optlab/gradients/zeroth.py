"""Gradients without back-propagation: from losses alone, or from forward derivatives.

Both are called like `jax.value_and_grad`, with a key. What they give goes into any
optimizer: behind `optax.sgd` it is ZO-SGD, behind `optlab.lion` ZO-sign-SGD with
momentum, behind `optax.adam` ZO-Adam. Their memory is that of inference and a few
copies of the parameters.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import checks
from optlab.dtypes import check_floating

PyTree = Any


def zo_value_and_grad(
    loss: Callable[..., Any],
    *,
    mu: float = 1e-3,
    samples: int = 1,
    two_sided: bool = True,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
    """Loss and a gradient estimate from differences of the loss, without derivatives.

    With `u` standard normal, made again from its key rather than kept::

        g = (f(x + mu u) - f(x - mu u)) / (2 mu) u          two_sided
        g = (f(x + mu u) - f(x)) / mu u                     else

    averaged over `samples` directions. On a quadratic the two-sided estimate is
    unbiased. Its cosine with the gradient is about `sqrt(samples / P)` for `P`
    parameters, so rates must be far lower than with exact gradients.

    Args:
      loss: `loss(params, *args)` -> scalar, or `(scalar, aux)`. It need not be
        differentiable.
      mu: the distance at which the loss is taken. In bfloat16 parameters a step of
        `mu` may be lost to rounding: keep them in float32.
      samples: directions, worked through one after another; 2 losses each, or with
        `two_sided=False` one each and one more.
      two_sided: whether the loss is taken on both sides.
      has_aux: whether `loss` returns `(loss, aux)`.

    Returns:
      `f(params, key, *args, mask=None) -> (value, grads)`. `value` is the loss at
      `params` where it was taken there, else the mean of those on both sides, which
      differs from it by `O(mu^2)`; with `has_aux` it is `(value, aux)`, the aux of the
      first loss taken. `mask` is a tree like `params` or a prefix of it, of booleans
      or of arrays: where it is 0 no direction goes and the gradient is 0. See
      `blocks_in_turn`.

    Raises:
      ValueError: `mu` is not above 0 or `samples` no integer of at least 1.

    References:
      Spall, 1992, doi 10.1109/9.119632; Zhang et al., `Revisiting Zeroth-Order
      Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark
      <https://arxiv.org/abs/2402.11592>`_.
    """
    checks.positive(mu=mu)
    checks.positive_int(samples=samples)

    def f(params, key, *args, mask=None):
        def evaluate(p):
            found = loss(p, *args)
            return found if has_aux else (found, ())

        here = None if two_sided else evaluate(params)

        def sample(key):
            u = _direction(key, params, mask)
            ahead, aux = evaluate(_plus(params, mu, u))
            if here is not None:
                return here[0], aux, (ahead - here[0]) / mu, u
            behind, _ = evaluate(_plus(params, -mu, u))
            return (ahead + behind) / 2, aux, (ahead - behind) / (2 * mu), u

        value, aux, grads = _averaged(sample, params, key, samples)
        aux = aux if here is None else here[1]
        return ((value, aux) if has_aux else value), grads

    return f


def forward_value_and_grad(
    loss: Callable[..., Any], *, samples: int = 1, has_aux: bool = False
) -> Callable[..., tuple[Any, PyTree]]:
    """Loss and the forward gradient: a derivative along a random direction, times it.

    `g = <grad f(x), u> u` with `u` standard normal, which is unbiased; the inner
    product is a `jax.jvp`, so there is no backward pass.

    Args:
      loss: `loss(params, *args)` -> scalar, or `(scalar, aux)`, differentiable.
      samples: directions to average over, one after another.
      has_aux: whether `loss` returns `(loss, aux)`.

    Returns:
      `f(params, key, *args, mask=None) -> (value, grads)`, with the loss at `params`;
      with `has_aux` `((value, aux), grads)`. `mask` as of `zo_value_and_grad`.

    Raises:
      ValueError: `samples` is no integer of at least 1.

    References:
      Baydin et al., `Gradients without Backpropagation
      <https://arxiv.org/abs/2202.08587>`_.
    """
    checks.positive_int(samples=samples)

    def f(params, key, *args, mask=None):
        def evaluate(p):
            found = loss(p, *args)
            return found if has_aux else (found, ())

        def sample(key):
            u = _direction(key, params, mask)
            value, along, aux = jax.jvp(evaluate, (params,), (u,), has_aux=True)
            return value, aux, along, u

        value, aux, grads = _averaged(sample, params, key, samples)
        return ((value, aux) if has_aux else value), grads

    return f


def blocks_in_turn(params: PyTree, blocks: int, count: jax.Array | int) -> PyTree:
    """A mask that lets one block of leaves move at a time.

    Leaves are cut, in their order, into blocks of about as many parameters. With fewer
    parameters that move, an estimate has a higher cosine with their gradient.

    Args:
      params: arrays or shapes.
      blocks: how many; at least 1, at most the number of leaves.
      count: steps made before this one; block `count % blocks` moves.

    Returns:
      A tree like `params` of boolean scalars, which may depend on a traced `count`.

    Raises:
      ValueError: `blocks` is out of range.
    """
    checks.positive_int(blocks=blocks)
    leaves, treedef = jax.tree.flatten(params)
    if blocks > len(leaves):
        raise ValueError(f"blocks must be at most {len(leaves)} leaves, got {blocks}")
    sizes = [math.prod(np.shape(x)) for x in leaves]
    total, before, owners = max(sum(sizes), 1), 0, []
    for place, size in enumerate(sizes):
        middle = (before + size / 2) / total
        # Every block has a leaf: none begins later than its leaves allow.
        last = owners[-1] if owners else -1
        least = max(last, blocks - (len(sizes) - place))
        most = min(last + 1, blocks - 1)
        owners.append(int(min(max(int(middle * blocks), least), most)))
        before += size
    now = jnp.asarray(count) % blocks
    return treedef.unflatten([now == owner for owner in owners])


def keep_if_better(
    loss: Callable[..., jax.Array], params: PyTree, updates: PyTree, *args: Any
) -> tuple[PyTree, jax.Array]:
    """The conservative step: the new parameters where the loss falls, else the old.

    It costs two losses. The optimizer's state, if it has one, is the caller's to keep
    or to take back.

    Args:
      loss: `loss(params, *args)` -> scalar.
      params: before the step.
      updates: the step, to be added.
      *args: of the loss, the same batch for both.

    Returns:
      The parameters, and whether the step was made.
    """
    moved = optax.apply_updates(params, updates)
    better = loss(moved, *args) < loss(params, *args)
    kept = jax.tree.map(lambda x, old: jnp.where(better, x, old), moved, params)
    return kept, better


def _direction(key: jax.Array, params: PyTree, mask: PyTree | None) -> PyTree:
    check_floating("params", params)
    leaves, treedef = jax.tree.flatten(params)
    keys = treedef.unflatten(list(jax.random.split(key, max(len(leaves), 1))))
    u = jax.tree.map(lambda p, k: jax.random.normal(k, p.shape, p.dtype), params, keys)
    if mask is None:
        return u

    def masked(part, below):
        return jax.tree.map(lambda x: x * jnp.asarray(part).astype(x.dtype), below)

    return jax.tree.map(masked, mask, u)


def _averaged(
    sample: Callable, params: PyTree, key: jax.Array, samples: int
) -> tuple[jax.Array, Any, PyTree]:
    """Means of the values and of slope times direction over the samples."""
    if samples == 1:
        value, aux, slope, u = sample(key)
        return value, aux, _scaled(u, slope)

    def add(total, key):
        value, aux, slope, u = sample(key)
        return _plus(total, slope / samples, u), (value, aux)

    zeros = jax.tree.map(jnp.zeros_like, params)
    keys = jax.random.split(key, samples)
    grads, (values, aux) = jax.lax.scan(add, zeros, keys)
    return jnp.mean(values), jax.tree.map(lambda x: x[0], aux), grads


def _scaled(tree: PyTree, factor: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def _plus(a: PyTree, factor: Any, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + jnp.asarray(factor, x.dtype) * y, a, b)
