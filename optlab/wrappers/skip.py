"""Steps that jump out of the run's statistics are skipped, or their gradient scaled."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optlab import checks
from optlab.compose import cast_like, to_state_dtype
from optlab.leaves import over_leaves
from optlab.matrices.linalg import frobenius_norm
from optlab.options import Number

# The least standard deviation, as a share of the mean: where the past is constant, any
# rise would be a jump.
_LEAST_SPREAD = 1e-2


class SkipSpikesState(NamedTuple):
    """State of the skipping; a window holds NaN where nothing has been seen yet."""

    count: jax.Array  # (), calls
    skipped: jax.Array  # (), of them without a step
    scaled: jax.Array  # (), of them with a gradient scaled down
    norms: Any  # (window,), of the gradients; () if they are not watched
    losses: Any  # (window,); () if they are not watched
    inner: optax.OptState


def skip_spikes(
    tx: optax.GradientTransformation,
    *,
    window: int = 128,
    factor: Number = 6.0,
    watch: Literal["norm", "loss", "both"] = "norm",
    action: Literal["skip", "scale"] = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Skips a step whose gradient norm or loss jumps out of its past.

    With the mean and the standard deviation of the last `window` values, this step's
    not among them, a value is a jump above `mean + factor max(std, mean / 100)`, once
    half of the window has been seen. Every finite value enters the window, so that a
    level that stays becomes the new normal one. A norm or loss that is not finite is a
    jump at any time. In a skipped step the update is 0 and the state of `tx` stays,
    schedules and momenta with it.

    Example:
      >>> import optlab
      >>> tx = optlab.skip_spikes(optlab.cosmos(1e-2), factor=6.0)

    Args:
      tx: any optimizer.
      window: how many values are remembered, at least 2.
      factor: standard deviations above the mean.
      watch: "norm", the global norm of the gradients; "loss", `update`'s extra
        argument `value`, as in optax; or "both".
      action: on a jump of the norm, "skip" the step or "scale" the gradients down to
        the bound. A jump of the loss, and what is not finite, is always skipped.

    Returns:
      The transform. Its state holds a window for each that is watched, and counts
      `skipped` and `scaled` steps, which :func:`skipped_steps` finds.

    Raises:
      ValueError: an argument is out of range, `tx` is no transform, or `value` is
        missing.
    """
    checks.transform(tx=tx)
    checks.positive_int(window=window)
    if window < 2:
        raise ValueError(f"window must be an integer >= 2, got {window!r}")
    checks.positive(factor=factor)
    checks.one_of(("norm", "loss", "both"), watch=watch)
    checks.one_of(("skip", "scale"), action=action)
    by_norm, by_loss = watch in ("norm", "both"), watch in ("loss", "both")
    inner = optax.with_extra_args_support(tx)

    def empty(watched):
        # No array without entries: checkpoints refuse them.
        return jnp.full((window,), jnp.nan, jnp.float32) if watched else ()

    def init_fn(params):
        zero = jnp.zeros([], jnp.int32)
        return SkipSpikesState(
            *(zero, zero, zero, empty(by_norm), empty(by_loss)), inner.init(params)
        )

    def update_fn(updates, state, params=None, **extra):
        norm = _global_norm(updates)
        skip, scale = ~jnp.isfinite(norm), jnp.asarray(1.0, norm.dtype)
        norms, losses = state.norms, state.losses
        if by_norm:
            bound = _bound(norms, factor)
            jumps = norm > bound
            if action == "scale":
                scale = jnp.where(jumps & ~skip, bound / norm, scale)
            else:
                skip |= jumps
            norms = _with_value(norms, state.count, norm)
        if by_loss:
            loss = extra.get("value")
            if loss is None:
                raise ValueError(f"watch={watch!r}: update needs the argument value")
            loss = jnp.asarray(loss, jnp.float32)
            skip |= ~jnp.isfinite(loss) | (loss > _bound(losses, factor))
            losses = _with_value(losses, state.count, loss)
        small = updates
        if action == "scale":
            wide = to_state_dtype(updates)
            small = jax.tree.map(lambda g: g * scale.astype(g.dtype), wide)
            small = cast_like(small, updates)

        def step():
            return inner.update(small, state.inner, params, **extra)

        def stay():
            shapes = jax.eval_shape(step)[0]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return zeros, state.inner

        # Not a select: an eigendecomposition of NaN may take for ever.
        new, inner_state = lax.cond(skip, stay, step)
        new_state = SkipSpikesState(
            count=state.count + 1,
            skipped=state.skipped + skip,
            scaled=state.scaled + ((scale < 1) & ~skip),
            norms=norms,
            losses=losses,
            inner=inner_state,
        )
        return new, new_state

    return over_leaves(init_fn, update_fn)


def skipped_steps(state: Any) -> dict[str, jax.Array]:
    """How many steps :func:`skip_spikes` skipped and scaled so far.

    Args:
      state: of any optimizer, with `skip_spikes` anywhere in it.

    Returns:
      `{"skipped_steps": ..., "scaled_steps": ...}`, over all of them; empty if there
      is none.
    """
    found = [
        node
        for node in jax.tree.leaves(
            state, is_leaf=lambda x: isinstance(x, SkipSpikesState)
        )
        if isinstance(node, SkipSpikesState)
    ]
    if not found:
        return {}
    return {
        "skipped_steps": sum((node.skipped for node in found), jnp.int32(0)),
        "scaled_steps": sum((node.scaled for node in found), jnp.int32(0)),
    }


def _global_norm(tree: Any) -> jax.Array:
    """In float32, right where a square would overflow."""
    norms = [
        frobenius_norm(jnp.abs(x)).astype(jnp.float32)
        for x in jax.tree.leaves(to_state_dtype(tree))
    ]
    return frobenius_norm(jnp.stack(norms)) if norms else jnp.zeros([], jnp.float32)


def _bound(values: jax.Array, factor: Any) -> jax.Array:
    """Above which a value jumps out of a window; infinite while that is half empty."""
    seen = jnp.isfinite(values)
    number = jnp.sum(seen)
    share = jnp.maximum(number, 1).astype(values.dtype)
    # Over the largest of them, so that no square overflows.
    largest = jnp.max(jnp.where(seen, jnp.abs(values), 0.0))
    size = jnp.where(largest > 0, largest, 1.0)
    scaled = jnp.where(seen, values / size, 0.0)
    mean = jnp.sum(scaled) / share
    square = jnp.where(seen, jnp.square(scaled - mean), 0.0)
    spread = jnp.sqrt(jnp.sum(square) / share)
    bound = mean + factor * jnp.maximum(spread, _LEAST_SPREAD * jnp.abs(mean))
    enough = number >= max(2, values.size // 2)
    return jnp.where(enough, bound * size, jnp.inf)


def _with_value(values: jax.Array, count: jax.Array, value: jax.Array) -> jax.Array:
    """The window with a value in the place of the oldest, if it is finite."""
    place = count % values.size
    value = jnp.where(jnp.isfinite(value), value, values[place])
    return values.at[place].set(value)
