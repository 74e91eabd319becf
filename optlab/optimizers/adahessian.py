"""AdaHessian: Adam whose second moment is that of the Hessian's diagonal.

For every leaf with gradient `g` and Hutchinson's estimate `d = z * (H z)` of the
Hessian's diagonal at step `t = 1, 2, ...`::

    d_s = mean of |d| over a block
    m = b1 m + (1-b1) g
    v = b2 v + (1-b2) d_s^2                         at Hessian steps, else unchanged
    direction = m/(1-b1^t) / ((sqrt(v) / sqrt(1-b2^n))^k + eps)

Hessian steps are 1, 1+h, 1+2h, ... with `h = hessian_interval`, and `n` is the number
of them so far. The blocks by role, in this library's layout `(inputs, outputs)`:

* vectors: each entry for itself.
* dense kernels: all inputs of an output, so one block a column.
* convolutions, `(spatial..., in, out)`: the spatial axes.
* embedding tables and heads: the width.

Held against the authors' code, amirgholami/adahessian at commit 85ebc00, instruction/
(its rows are our columns). Deviations:

* the estimate is signed and comes from outside, so that it can be averaged over devices
  before the absolute value; the authors' code throws its average over devices away.
* `average="signed"` averages over blocks before the absolute value, as the paper
  writes it.
* a block size that does not divide a leaf leaves a shorter last block, and blocks stay
  within one matrix of a stack; the authors' code has neither.
* `hessian_interval`, which is in the paper only.

References:
  Yao et al., `ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning
  <https://arxiv.org/abs/2006.00719>`_, 2020.
"""

import math
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import (
    bias_correction,
    cast_like,
    descend,
    to_state_dtype,
    zero_state,
)
from optlab.gradients.curvature import is_hessian_step
from optlab.leaves import over_leaves
from optlab.matrices.linalg import safe_sqrt
from optlab.options import (
    DecayOptions,
    LeafOptions,
    Number,
    Rate,
    Roles,
    StateOptions,
    pick,
    takes,
)
from optlab.roles import Embedding, Matrix, Rule, as_rule


class ScaleByAdaHessianState(NamedTuple):
    """State of AdaHessian."""

    count: jax.Array  # ()
    mu: optax.Updates  # m, as the parameters
    nu: optax.Updates  # v, as the parameters


class _Axes(NamedTuple):
    """The axes of a leaf: its stack, those that index blocks, those of a block."""

    stack: tuple[int, ...]
    kept: tuple[int, ...]
    averaged: tuple[int, ...]


def _axes(path: Any, leaf: Any, rule: Rule) -> _Axes | None:
    """What is averaged over in a leaf; None for nothing."""
    role, rank = rule(path, leaf), len(leaf.shape)
    if isinstance(role, Matrix):
        averaged = role.spatial or role.rows
        kept = role.cols + tuple(a for a in role.rows if a not in averaged)
        stack = tuple(a for a in range(rank) if a not in role.rows + role.cols)
        return _Axes(stack, kept, averaged)
    if isinstance(role, Embedding) and rank > 1:
        width = role.width_axis(rank)
        kept = (2 * rank - 3 - width,)  # the other one of the last two
        return _Axes(tuple(range(rank - 2)), kept, (width,))
    return None


def _average(d: jax.Array, axes: _Axes, block: bool | int) -> jax.Array:
    """The mean of each block in place of its entries."""
    if block is True:
        return jnp.broadcast_to(d.mean(axes.averaged, keepdims=True), d.shape)
    order = axes.stack + axes.kept + axes.averaged
    x = d.transpose(order)
    stack, size = x.shape[: len(axes.stack)], math.prod(x.shape[len(axes.stack) :])
    block = min(block, size)
    padding = [(0, 0)] * len(stack) + [(0, -size % block)]
    blocks = jnp.pad(x.reshape(*stack, size), padding)
    sums = blocks.reshape(*stack, -1, block).sum(-1)
    lengths = np.minimum(block, size - block * np.arange(sums.shape[-1]))
    means = sums / np.broadcast_to(lengths.astype(d.dtype), sums.shape)
    entries = jnp.repeat(means, block, axis=-1)[..., :size]
    return entries.reshape(x.shape).transpose(np.argsort(order))


def scale_by_adahessian(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-4,
    hessian_power: Number = 1.0,
    *,
    spatial_averaging: bool | int = True,
    average: Literal["abs", "signed"] = "abs",
    hessian_interval: int = 1,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of AdaHessian, for every leaf; `update` takes `hessian_diag=`.

    See :func:`optlab.adahessian` for the arguments, and
    :mod:`optlab.optimizers.adahessian` for the equations.

    Returns:
      The transform; its state holds two numbers a parameter.

    Raises:
      ValueError: an argument is out of range, or `update` has no `hessian_diag`.
    """
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps, hessian_power=hessian_power)
    checks.static(hessian_interval=hessian_interval)
    if not isinstance(spatial_averaging, bool):
        checks.non_negative_int(spatial_averaging=spatial_averaging)
    checks.dtype(mu_dtype=mu_dtype)
    checks.one_of(("abs", "signed"), average=average)
    checks.positive_int(hessian_interval=hessian_interval)
    rule = as_rule(roles)

    def init_fn(params):
        return ScaleByAdaHessianState(
            count=jnp.zeros([], jnp.int32),
            mu=zero_state(params, mu_dtype),
            nu=zero_state(params),
        )

    def block_means(path, d):
        axes = _axes(path, d, rule) if spatial_averaging else None
        d = jnp.abs(d) if average == "abs" else d
        return d if axes is None else _average(d, axes, spatial_averaging)

    def update_fn(updates, state, params=None, *, hessian_diag=None, **extra):
        del params, extra
        if hessian_diag is None:
            raise ValueError(
                "hessian_diag: adahessian needs update(..., hessian_diag=...), see "
                "optlab.value_grad_and_hessian_diag"
            )
        t = state.count + 1
        fresh = is_hessian_step(state.count, hessian_interval)
        n = state.count // hessian_interval + 1
        gradients = to_state_dtype(updates)
        means = jax.tree_util.tree_map_with_path(
            block_means, cast_like(hessian_diag, gradients)
        )
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradients, state.mu)
        nu = jax.tree.map(
            lambda d, v: jnp.where(fresh, b2 * v + (1 - b2) * jnp.square(d), v),
            *(means, state.nu),
        )

        def direction(m, v):
            root = safe_sqrt(v) / jnp.sqrt(bias_correction(b2, n, v.dtype))
            momentum = m / bias_correction(b1, t, v.dtype)
            # A power of 0 has no derivative.
            power = jnp.where(root == 0, 1.0, root) ** hessian_power
            power = jnp.where(root == 0, jnp.equal(hessian_power, 0), power)
            return momentum / (power + eps)

        directions = jax.tree.map(direction, mu, nu)
        new_state = ScaleByAdaHessianState(
            t, cast_like(mu, state.mu), cast_like(nu, state.nu)
        )
        return cast_like(directions, updates), new_state

    return over_leaves(init_fn, update_fn, real="adahessian")


@takes(LeafOptions)
def adahessian(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-4,
    hessian_power: Number = 1.0,
    spatial_averaging: bool | int = True,
    average: Literal["abs", "signed"] = "abs",
    hessian_interval: int = 1,
    **options: Unpack[LeafOptions],
) -> optax.GradientTransformationExtraArgs:
    """Adam with the Hessian's diagonal in the place of the gradient's square.

    The equations and the deviations from the authors' code stand in
    :mod:`optlab.optimizers.adahessian`. The authors' rate for CIFAR is 0.15.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> loss = lambda p: jnp.sum(jnp.tanh(p["w"]) ** 2) + jnp.sum(p["bias"] ** 2)
      >>> tx = optlab.adahessian(0.15)
      >>> state = tx.init(params)
      >>> step = optlab.value_grad_and_hessian_diag(loss)
      >>> value, grads, diag = step(params, jax.random.key(0))
      >>> updates, state = tx.update(grads, state, params, hessian_diag=diag)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator.
      hessian_power: k, the power of the denominator; 0 is SGD with momentum.
      spatial_averaging: True for the blocks by role, False for none, or the size of
        blocks of neighbours along a leaf that has its inputs last.
      average: "abs" or "signed", what is averaged over a block.
      hessian_interval: steps that one Hessian diagonal serves. Between Hessian steps,
        which `optlab.is_hessian_step(count, hessian_interval)` tells, `hessian_diag`
        is ignored.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer. Its `update` takes `hessian_diag=`, a tree like the parameters:
      the signed estimate, averaged over devices.

    Raises:
      ValueError: an argument is out of range, or `update` has no `hessian_diag`.
    """
    direction = scale_by_adahessian(
        *(b1, b2, eps, hessian_power),
        spatial_averaging=spatial_averaging,
        average=average,
        hessian_interval=hessian_interval,
        **pick(StateOptions, options),
    )
    return descend(direction, learning_rate, **pick(DecayOptions, options))
