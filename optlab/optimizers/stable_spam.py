"""Stable-SPAM: Adam on gradients of steady maximum and norm, with moment resets.

For every tensor (each layer where layers are stacked) with gradient `g` at step
`t = 1, 2, ...`, with `T = reset_interval`::

    q = g3 q + (1-g3) max|g| ;  qhat = q/(1-g3^t)
    g <- g qhat/max|g|  where |g| > qhat                                 AdaClip
    n = |g|_2 ;  mu = g1 mu + (1-g1) n ;  nu = g2 nu + (1-g2) n^2
    g <- g/n  mu/(1-g1^t) / (sqrt(nu/(1-g2^t)) + eps)                    AdaGN
    if t mod T == 0:  m = v = 0, c = 1,  else c = c + 1
    m = b1 m + (1-b1) g ;  v = b2 v + (1-b2) g^2
    direction = m/(1-b1^c) / (sqrt(v/(1-b2^c)) + eps)

With `total_steps`, `g1` and `b1` of step `t` are the given ones times
`1/2 + (1 + cos(pi t/(total_steps+1)))/4`, in the bias corrections too.

Held against the authors' code, TianjinYellow/StableSPAM at commit 6a66da1, before its
first reset. Deviations:

* the reset comes before the step's moments; the authors' code uses the old ones once
  more.
* AdaClip and AdaGN count all steps; in the authors' code they share Adam's count, which
  a reset sets back, and that inflates `qhat` through most of each window.
* with `total_steps`, `g1` and `b1` stay at half from step `total_steps + 1` on; in the
  authors' code they follow the cosine up again.
* the norm that `mu` and `nu` take is at most 5e18 (in float32), so that they recover.

References:
  Huang et al., `Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam
  <https://arxiv.org/abs/2502.17055>`_, 2025.
"""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import (
    bias_correction,
    cast_like,
    descend,
    state_dtype,
    to_state_dtype,
    zero_state,
)
from optlab.leaves import over_leaves
from optlab.matrices.linalg import frobenius_norm, safe_sqrt
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
from optlab.wrappers.spikes import window_position


class ScaleByStableSpamState(NamedTuple):
    """State of Stable-SPAM; the last three hold one number a tensor, `(stack...)`."""

    count: jax.Array  # ()
    mu: optax.Updates  # m, as the parameters
    nu: optax.Updates  # v, as the parameters
    max_mean: optax.Updates  # q
    norm_mean: optax.Updates  # mu
    norm_square: optax.Updates  # nu


def _tensor_axes(path: Any, leaf: Any, rule: Rule) -> tuple[int, ...]:
    """The axes of one tensor; the others are a stack. A vector is the last axis."""
    role, rank = rule(path, leaf), len(leaf.shape)
    if isinstance(role, Matrix):
        return role.rows + role.cols
    return tuple(range(rank))[-2 if isinstance(role, Embedding) else -1 :]


def scale_by_stable_spam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    *,
    gamma1: Number = 0.7,
    gamma2: Number = 0.9,
    gamma3: Number = 0.999,
    reset_interval: int = 1000,
    total_steps: int | None = None,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Stable-SPAM, for every leaf.

    See :func:`optlab.stable_spam` for the arguments, and
    :mod:`optlab.optimizers.stable_spam` for the equations.

    Returns:
      The transform; its state holds two numbers a parameter and three a tensor.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.fraction(b1=b1, b2=b2, gamma1=gamma1, gamma2=gamma2, gamma3=gamma3)
    checks.non_negative(eps=eps)
    checks.static(reset_interval=reset_interval, total_steps=total_steps)
    checks.non_negative_int(reset_interval=reset_interval)
    if total_steps is not None:
        checks.positive_int(total_steps=total_steps)
    checks.dtype(mu_dtype=mu_dtype)
    rule = as_rule(roles)

    def init_fn(params):
        def zero(path, p):
            axes = _tensor_axes(path, p, rule)
            stack = [size for a, size in enumerate(p.shape) if a not in axes]
            return jnp.zeros(stack, state_dtype(p))

        def scalars():  # Three trees, since donated buffers must not be shared.
            return jax.tree_util.tree_map_with_path(zero, params)

        return ScaleByStableSpamState(
            jnp.zeros([], jnp.int32),
            zero_state(params, mu_dtype),
            zero_state(params),
            *(scalars(), scalars(), scalars()),
        )

    def step(axes, t, g, own):
        """One leaf: the direction and its new state."""
        m, v, q, mean, square = own
        dtype, decay1, norm1 = g.dtype, b1, gamma1
        if total_steps is not None:
            progress = jnp.minimum(t, total_steps + 1).astype(dtype) / (total_steps + 1)
            factor = 0.5 + 0.25 * (1 + jnp.cos(jnp.pi * progress))
            decay1, norm1 = b1 * factor, gamma1 * factor

        def corrected(average, decay):
            return jnp.expand_dims(average / bias_correction(decay, t, dtype), axes)

        largest = jnp.max(jnp.abs(g), axis=axes, initial=0.0)
        q = gamma3 * q + (1 - gamma3) * largest
        limit = corrected(q, gamma3)
        # Below it there may be none, and 1 keeps the division defined.
        top = jnp.where(largest > 0, largest, 1.0)
        g = jnp.where(jnp.abs(g) > limit, g / jnp.expand_dims(top, axes) * limit, g)

        norm = frobenius_norm(g, axis=axes)
        seen = jnp.minimum(norm, float(jnp.finfo(dtype).max) ** 0.4853)
        mean = norm1 * mean + (1 - norm1) * seen
        square = gamma2 * square + (1 - gamma2) * jnp.square(seen)
        target = corrected(mean, norm1) / (safe_sqrt(corrected(square, gamma2)) + eps)
        norm = jnp.expand_dims(jnp.where(norm > 0, norm, 1.0), axes)
        g = g / norm * target

        position = window_position(t, reset_interval)
        since = jnp.where(t == position, t, position + 1)
        m, v = (jnp.where(position == 0, 0.0, x) for x in (m, v))
        m = decay1 * m + (1 - decay1) * g
        v = b2 * v + (1 - b2) * jnp.square(g)
        root = safe_sqrt(v / bias_correction(b2, since, dtype))
        direction = m / bias_correction(decay1, since, dtype) / (root + eps)
        return direction, m, v, q, mean, square

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        t = state.count + 1
        leaves, treedef = jax.tree_util.tree_flatten_with_path(to_state_dtype(updates))
        results = [
            step(_tensor_axes(path, g, rule), t, g, own)
            for (path, g), *own in zip(
                leaves, *map(treedef.flatten_up_to, state[1:]), strict=True
            )
        ]
        directions, *new = (
            treedef.unflatten([result[i] for result in results]) for i in range(6)
        )
        return cast_like(directions, updates), ScaleByStableSpamState(
            t, *map(cast_like, new, state[1:])
        )

    return over_leaves(init_fn, update_fn, real="stable_spam")


@takes(LeafOptions)
def stable_spam(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    gamma1: Number = 0.7,
    gamma2: Number = 0.9,
    gamma3: Number = 0.999,
    reset_interval: int = 1000,
    total_steps: int | None = None,
    **options: Unpack[LeafOptions],
) -> optax.GradientTransformationExtraArgs:
    """Adam behind an adaptive clip and an adaptive norm, with moment resets.

    The equations and the deviations from the authors' code stand in
    :mod:`optlab.optimizers.stable_spam`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.stable_spam(1e-3, weight_decay=0.1)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominators.
      gamma1: decay of the mean gradient norm, in [0, 1).
      gamma2: decay of its mean square, in [0, 1).
      gamma3: decay of the mean largest entry, in [0, 1).
      reset_interval: steps between resets of the moments, T; 0: never. The authors
        take 500 in their FP4 example.
      total_steps: of the training, over which `gamma1` and `b1` fall to half by a
        cosine. None: they stay.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    direction = scale_by_stable_spam(
        *(b1, b2, eps),
        gamma1=gamma1,
        gamma2=gamma2,
        gamma3=gamma3,
        reset_interval=reset_interval,
        total_steps=total_steps,
        **pick(StateOptions, options),
    )
    return descend(direction, learning_rate, **pick(DecayOptions, options))
