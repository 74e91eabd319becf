"""SPAM's two remedies as separate transforms: clipped spikes, forgotten moments.

`optlab.spam` is both around Adam, with one second moment for the two. Steps count from
1, and a window is the steps from one reset to the next.

References:
  Huang et al., `SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training
  <https://arxiv.org/abs/2501.06842>`_, 2025.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import checks
from optlab.compose import cast_like, state_dtype, to_state_dtype, zero_state
from optlab.leaves import over_leaves
from optlab.matrices.linalg import safe_sqrt
from optlab.options import Number


class ClipSpikesState(NamedTuple):
    """State of `clip_spikes`."""

    count: jax.Array  # ()
    nu: optax.Updates  # v, as the parameters


class ResetEveryState(NamedTuple):
    """State of `reset_every`."""

    count: jax.Array  # ()
    inner_state: optax.OptState


def clip_spikes(
    spike_threshold: Number = 5000.0,
    b2: Number = 0.999,
    *,
    reset_interval: int = 500,
    clip_start_step: int = 20,
) -> optax.GradientTransformationExtraArgs:
    """Cuts entries down to the root of a multiple of their running mean square.

    `g <- sign(g) min(|g|, sqrt(theta v))` with SPAM's `v`, the average of the clipped
    squares without bias correction. It stands before any optimizer.

    Args:
      spike_threshold: theta; 0 clips nothing.
      b2: decay of the mean square, in [0, 1).
      reset_interval: steps after which `v` starts from 0 again; 0: never.
      clip_start_step: first step of a window that clips, at least 2.

    Returns:
      The transform; its state is one number a parameter.

    Raises:
      ValueError: an argument is out of range.
    """
    check_clipping(spike_threshold, reset_interval, clip_start_step, b2=b2)

    def init_fn(params):
        return ClipSpikesState(jnp.zeros([], jnp.int32), zero_state(params))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        t = state.count + 1
        position = window_position(t, reset_interval)
        active = position >= clip_start_step
        gradients = to_state_dtype(updates)
        nu = jax.tree.map(lambda v: jnp.where(position == 0, 0.0, v), state.nu)
        clipped = jax.tree.map(
            lambda g, v: clip_to_moment(g, v, spike_threshold, active), gradients, nu
        )
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * jnp.square(g), clipped, nu)
        return cast_like(clipped, updates), ClipSpikesState(t, cast_like(nu, state.nu))

    return over_leaves(init_fn, update_fn, real="clip_spikes")


def reset_every(
    inner: optax.GradientTransformation,
    interval: int,
    *,
    warmup_steps: int = 0,
    counts: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sets the moments of a transform back to their start every so many steps.

    The reset comes before the update of steps `interval`, `2 interval`, ... (from 1),
    and reaches every floating array of the state, so hyper-parameters are best
    injected outside. After a reset the updates are scaled by SPAM's `s_t`.

    With `theta = spike_threshold`, SPAM is but for the place of eps
    `chain(clip_spikes(theta), reset_every(scale_by_adam(), 500, warmup_steps=150))`;
    :func:`optlab.spam` shares the second moment of the two.

    Args:
      inner: the transform.
      interval: number of steps between resets.
      warmup_steps: over which the updates grow back after a reset; 0: none.
      counts: whether integers go back as well, and bias corrections with them.

    Returns:
      The transform; its state is that of `inner` and a count.

    Raises:
      ValueError: an argument is out of range, or `inner` is no transform.
    """
    checks.transform(inner=inner)
    checks.positive_int(interval=interval)
    checks.non_negative_int(warmup_steps=warmup_steps)
    inner = optax.with_extra_args_support(inner)
    kinds = (jnp.inexact, jnp.integer) if counts else (jnp.inexact,)

    def init_fn(params):
        return ResetEveryState(jnp.zeros([], jnp.int32), inner.init(params))

    def update_fn(updates, state, params=None, **extra):
        t = state.count + 1
        position = window_position(t, interval)

        def restart(old, fresh):
            if not any(jnp.issubdtype(old.dtype, kind) for kind in kinds):
                return old
            return jnp.where(position == 0, fresh.astype(old.dtype), old)

        start = inner.init(updates if params is None else params)
        inner_state = jax.tree.map(restart, state.inner_state, start)
        updates, inner_state = inner.update(updates, inner_state, params, **extra)
        if warmup_steps:
            updates = jax.tree.map(
                lambda u: (
                    u
                    * restart_warmup(
                        t, position, interval, warmup_steps, state_dtype(u)
                    )
                ).astype(u.dtype),
                updates,
            )
        return updates, ResetEveryState(t, inner_state)

    return over_leaves(init_fn, update_fn)


def check_clipping(
    spike_threshold: Any, reset_interval: Any, clip_start_step: Any, **fractions: Any
) -> None:
    """Raises `ValueError` for arguments that no window can have."""
    checks.fraction(**fractions)
    checks.non_negative(spike_threshold=spike_threshold)
    checks.non_negative_int(reset_interval=reset_interval)
    checks.positive_int(clip_start_step=clip_start_step)
    if clip_start_step < 2:  # There is no v to clip with at the first step.
        raise ValueError(f"clip_start_step must be >= 2, got {clip_start_step!r}")


def window_position(t: jax.Array, interval: int) -> jax.Array:
    """The place of step `t` in its window; 0 at a reset."""
    return t % interval if interval else t


def clip_to_moment(
    g: jax.Array, v: jax.Array, threshold: Any, active: jax.Array
) -> jax.Array:
    """`sign(g) min(|g|, sqrt(threshold v))` where `v > 0`, if `active`."""
    limit = safe_sqrt(threshold) * safe_sqrt(v)  # The product itself may overflow.
    spike = active & (threshold > 0) & (v > 0) & (jnp.abs(g) > limit)
    return jnp.where(spike, jnp.sign(g) * limit, g)


def restart_warmup(
    t: jax.Array, position: jax.Array, interval: int, steps: int, dtype: Any
) -> jax.Array:
    """SPAM's `s_t`: from 0.01 back to 1 over the first steps after a reset."""
    angle = jnp.pi * position.astype(dtype) / (steps + 1)
    scale = 1 - 0.99 * (1 + jnp.cos(angle)) / 2
    return jnp.where((t >= interval) & (position < steps), scale, 1.0)
