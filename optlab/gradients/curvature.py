"""Curvature of a loss: Hessian-vector products and Hutchinson's diagonal estimate.

Loss, gradient and Hessian diagonal come out of one forward-over-reverse pass, so the
gradient is not computed twice: 3 times the FLOPs of `jax.value_and_grad`.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab.dtypes import at_least_float32, check_floating

PyTree = Any


def rademacher_like(key: jax.Array, tree: PyTree) -> PyTree:
    """A tree of independent signs, +1 or -1 with equal probability.

    One word of random bits serves 32 entries of a row: drawing a word for each, as
    `jax.random.rademacher` does, costs over 50 integer operations an entry, as much
    as 3% of the gradient of a batch of 300 rows. Rows stay whole, so a leaf that is
    sharded along a leading axis has its signs made in place.

    Args:
      key: a PRNG key.
      tree: leaves of any floating dtype, of which only shape and dtype are used.

    Returns:
      A tree like `tree`, in its dtypes.

    Raises:
      ValueError: a leaf is not floating.
    """
    check_floating("tree", tree)
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    signs = [
        _signs(leaf_key, leaf) for leaf_key, leaf in zip(keys, leaves, strict=False)
    ]
    return treedef.unflatten(signs)


def hvp(
    loss_fn: Callable[..., jax.Array], params: PyTree, vector: PyTree, *args
) -> PyTree:
    """The Hessian-vector product `H v`, by forward-over-reverse differentiation.

    Args:
      loss_fn: `loss_fn(params, *args)` -> scalar.
      params: the point, a tree of floating arrays.
      vector: a tree like `params`, in its dtypes.
      *args: further arguments of `loss_fn`.

    Returns:
      A tree like `params`, in its dtypes.
    """
    gradient = jax.grad(lambda p: loss_fn(p, *args))
    return jax.jvp(gradient, (params,), (vector,))[1]


def value_grad_and_hessian_diag(
    loss_fn: Callable[..., Any], *, has_aux: bool = False, samples: int = 1
) -> Callable[..., tuple[Any, PyTree, PyTree]]:
    """Loss, gradient and Hutchinson's estimate of the Hessian diagonal in one pass.

    With vectors `z_i` of random signs, each as long as the parameters::

        d = (z_1 * (H z_1) + ... + z_n * (H z_n)) / n             E[d] = diag(H)

    The estimate is signed: average it over devices beside the gradient before any
    absolute value. Under `jit` with a sharded batch the mean in the loss does that.
    Under `pmap` or `shard_map` average it with `pmean`, and fold the device's index
    into the key if the probes shall be independent. There `shard_map` sums the
    gradients (and `H z`) of parameters that do not vary over its axes by itself, so
    make them vary: `jax.lax.pcast(params, axis, to="varying")`.

    One sample is a `jax.jvp` of the gradient, which keeps no more than the gradient's
    own activations and their tangents. More samples linearize the gradient once and
    run its linear part for each probe, 2 gradients' FLOPs a probe and not 3, in a
    `lax.scan`: a `vmap` would cost the same FLOPs and hold every probe's tangents.

    Args:
      loss_fn: `loss_fn(params, *args)` -> scalar, or `(scalar, aux)`. It must be
        twice differentiable where it is used; remat, scan and custom
        derivatives are fine.
      has_aux: whether `loss_fn` returns `(loss, aux)`.
      samples: number of probes.

    Returns:
      `f(params, key, *args) -> (loss, grads, hessian_diag)`, or with `has_aux`
      `((loss, aux), grads, hessian_diag)`. `hessian_diag` is a tree like `params`
      in `promote_types(param.dtype, float32)`.

    Raises:
      ValueError: `samples` is no integer of at least 1.

    References:
      Yao et al., ADAHESSIAN, https://arxiv.org/abs/2006.00719.
    """
    _check_positive("samples", samples)

    def f(params, key, *args):
        check_floating("params", params)

        def gradient(p):
            value, grads = jax.value_and_grad(loss_fn, has_aux=has_aux)(p, *args)
            return grads, value

        if samples == 1:
            z = rademacher_like(key, params)
            grads, hz, value = jax.jvp(gradient, (params,), (z,), has_aux=True)
            return value, grads, jax.tree.map(_product, z, hz)

        grads, linear, value = jax.linearize(gradient, params, has_aux=True)

        def add_sample(total, sample_key):
            z = rademacher_like(sample_key, params)
            diag = jax.tree.map(_product, z, linear(z))
            return jax.tree.map(jnp.add, total, diag), None

        total, _ = jax.lax.scan(
            add_sample, _zero_diag(grads), jax.random.split(key, samples)
        )
        return value, grads, jax.tree.map(lambda d: d / samples, total)

    return f


def is_hessian_step(count: jax.Array | int, interval: int) -> jax.Array | bool:
    """Whether the update after `count` earlier ones takes a fresh Hessian diagonal.

    True for updates 1, 1 + interval, 1 + 2 interval, ... The training step, which
    computes the diagonal, and the transform, which uses it, both ask here.

    Args:
      count: number of updates done before this one, an integer or integer scalar.
      interval: number of updates that one Hessian diagonal serves, at least 1.

    Returns:
      A bool, or a boolean scalar if `count` is an array.

    Raises:
      ValueError: `interval` is no integer of at least 1.
    """
    _check_positive("interval", interval)
    return count % interval == 0


def value_grad_and_periodic_hessian_diag(
    loss_fn: Callable[..., Any],
    interval: int,
    *,
    has_aux: bool = False,
    samples: int = 1,
) -> Callable[..., tuple[Any, PyTree, PyTree]]:
    """`value_grad_and_hessian_diag` on Hessian steps, zeros for the diagonal between.

    One compiled step serves both: `lax.cond` does the extra work only where
    `is_hessian_step(count, interval)`. Keep `count` a scalar that no `vmap` batches,
    else `cond` becomes a `select` that always does both.

    Args:
      loss_fn: as in `value_grad_and_hessian_diag`.
      interval: number of updates that one Hessian diagonal serves, at least 1.
      has_aux: whether `loss_fn` returns `(loss, aux)`.
      samples: number of probes on a Hessian step.

    Returns:
      `f(params, key, count, *args) -> (loss, grads, hessian_diag)`, with `count`
      the number of updates done before this one.

    Raises:
      ValueError: `interval` or `samples` is no integer of at least 1.
    """
    _check_positive("interval", interval)
    full = value_grad_and_hessian_diag(loss_fn, has_aux=has_aux, samples=samples)

    def cheap(params, key, *args):
        del key
        value, grads = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *args)
        return value, grads, _zero_diag(grads)

    def f(params, key, count, *args):
        if interval == 1:
            return full(params, key, *args)
        fresh = is_hessian_step(count, interval)
        return jax.lax.cond(fresh, full, cheap, params, key, *args)

    return f


def _signs(key: jax.Array, leaf: Any) -> jax.Array:
    """Signs of one leaf, 32 neighbours of a row from each word of random bits."""
    *rows, width = leaf.shape or (1,)
    words = jax.random.bits(key, (*rows, -(-width // 32)), jnp.uint32)
    places = np.arange(32, dtype=np.uint32).reshape(*(1,) * words.ndim, 32)
    bits = (words[..., None] >> places) & 1
    bits = bits.reshape(*rows, 32 * words.shape[-1])[..., :width]
    # Made from the leaf, so that it varies over the same axes of a shard_map.
    one = jnp.ones_like(leaf)
    return jnp.where(bits.reshape(leaf.shape) == 1, one, -one)


def _product(z: jax.Array, hz: jax.Array) -> jax.Array:
    return (z * hz).astype(at_least_float32(hz.dtype))


def _zero_diag(grads: PyTree) -> PyTree:
    return jax.tree.map(lambda g: jnp.zeros_like(g, at_least_float32(g.dtype)), grads)


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
