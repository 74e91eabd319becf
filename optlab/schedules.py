"""Learning-rate schedules: UBA, linear decay, and the one refined from a past run.

All are optax schedules: pure functions of the step count (int, float or traced,
scalar or array) that give float32, or float64 when x64 is on. `schedule(0)` is the
rate of the first update.
"""

import json
import math
import numbers
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Weights are powers of the gradient norm: l2 norms drive SGD, l1 norms drive Adam
# and the sign methods (arXiv 2310.07831, section 3).
_WEIGHT_POWER = {"l1": -1, "l2": -2}
_METRIC = {"l1": "grad_norm_l1", "l2": "grad_norm"}


def uba_schedule(
    peak_value: float | jax.Array,
    total_steps: int,
    phi: float = 1.0,
    *,
    end_value: float | jax.Array = 0.0,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
    phases: int = 1,
) -> optax.Schedule:
    """The unified budget-aware schedule, one family of falls with one shape knob.

    With `p` the share of the budget that is spent after the warm-up::

        C, S = cos^2(pi p/2), sin^2(pi p/2)
        rate = end + (peak - end) C / (C + (phi/2) S)

    The mean of the factor over the budget is `1 / (1 + sqrt(phi/2))`:
    `phi=2` is cosine decay, a smaller one stays high longer, a larger one falls
    earlier, and `phi=0` stays at the peak for ever. The paper writes the factor as
    `2(1+cos pi p) / (2 phi + (2-phi)(1+cos pi p))`, which is equal.

    How the paper splits several phases is not public; here each has an equal share of
    the steps after the one warm-up and falls from the peak to the end value.

    Args:
      peak_value: rate at the end of the warm-up; a number or a (traced) scalar.
      total_steps: length of the budget in steps, warm-up included.
      phi: shape of the fall, at least 0.
      end_value: rate from `total_steps` on (never reached if `phi` is 0).
      warmup_steps: steps of linear warm-up from `init_value` to the peak.
      init_value: rate at step 0 if there is a warm-up.
      phases: how many times to repeat the fall, at most once a step.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a plain number is out of range; the message names the argument.

    References:
      Tang et al., Stepsize Anything: A Unified Learning Rate Schedule for
      Budgeted-Iteration Training, https://arxiv.org/abs/2505.24452.
    """
    _check_real("phi", phi, minimum=0.0)
    _check_int("phases", phases, minimum=1)

    def factor(spent, left):
        # Both shares are exact to rounding, which 1 - p is not near the end.
        cos2 = jnp.square(jnp.sin(0.5 * np.pi * left))
        fall = cos2 / (cos2 + 0.5 * phi * jnp.square(jnp.sin(0.5 * np.pi * spent)))
        # 0/0 at the end, if phi is 0: the limit is written out.
        return jnp.where(left > 0, fall, jnp.where(jnp.equal(phi, 0), 1.0, 0.0))

    return _warmup_then(
        factor,
        peak_value,
        total_steps,
        end_value=end_value,
        warmup_steps=warmup_steps,
        init_value=init_value,
        phases=phases,
    )


def linear_decay_schedule(
    peak_value: float | jax.Array,
    total_steps: int,
    *,
    end_value: float | jax.Array = 0.0,
    warmup_steps: int = 0,
    init_value: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Linear warm-up, then linear decay, the best worst case for the last iterate.

    The rate is `end + (peak - end) (1 - p)`, with `p` the share of the budget that is
    spent after the warm-up.

    Args:
      peak_value: rate at the end of the warm-up; a number or a (traced) scalar.
      total_steps: length of the budget in steps, warm-up included.
      end_value: rate from `total_steps` on.
      warmup_steps: steps of linear warm-up from `init_value` to the peak.
      init_value: rate at step 0 if there is a warm-up.

    Returns:
      The schedule, step -> rate.

    Raises:
      ValueError: a plain number is out of range; the message names the argument.

    References:
      Defazio et al., When, Why and How Much? Adaptive Learning Rate Scheduling by
      Refinement, https://arxiv.org/abs/2310.07831.
    """
    return _warmup_then(
        lambda spent, left: left,
        peak_value,
        total_steps,
        end_value=end_value,
        warmup_steps=warmup_steps,
        init_value=init_value,
    )


def refined_schedule(
    gradient_norms: np.ndarray | str | os.PathLike[str],
    peak_value: float | jax.Array,
    *,
    norm: str = "l2",
    filter_width: float = 0.1,
) -> optax.Schedule:
    """The schedule that a finished run's gradient norms call for.

    With the weights `w`, the median-filtered norms to the power -2 (l2) or -1 (l1)::

        rate_t = c w_t (w_{t+1} + ... + w_T)       c such that the maximum is the peak

    and 0 from T on. Constant norms give linear decay, `1 - t/(T-1)`. The table of T
    values is a constant of the program that calls the schedule.

    Args:
      gradient_norms: shape (T,), the norm of every step's gradient, finite and
        positive; or the path of a run's `metrics.jsonl`, of which the fields
        `step` and `grad_norm` (for l1 `grad_norm_l1`) are read. Where a step was
        logged twice the later record counts; norms of steps that were not logged
        are interpolated linearly.
      peak_value: largest rate; a number or a (traced) scalar.
      norm: "l2" for SGD, "l1" for Adam and sign methods.
      filter_width: width of the median filter as a share of T, in [0, 1].

    Returns:
      The schedule, step -> rate; a fractional step counts as the one begun.

    Raises:
      ValueError: an argument, or what the metrics file holds, is out of range.

    References:
      Defazio et al., https://arxiv.org/abs/2310.07831; held against
      facebookresearch/adaptive_scheduling, find_schedule.py (commit not
      recorded).
    """
    if norm not in _WEIGHT_POWER:
        raise ValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
    _check_real("filter_width", filter_width, minimum=0.0, maximum=1.0)
    _check_real("peak_value", peak_value)
    if isinstance(gradient_norms, str | os.PathLike):
        gradient_norms = _read_norms(Path(gradient_norms), _METRIC[norm])
    norms = np.asarray(gradient_norms, np.float64)
    if norms.ndim != 1 or norms.size < 2:
        raise ValueError(
            "gradient_norms must be one-dimensional with at least two entries, "
            f"got shape {norms.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ValueError(
            "gradient_norms must be finite and positive, "
            f"got {norms[bad[0]]} at index {bad[0]}"
        )
    table = np.append(_refine(norms, _WEIGHT_POWER[norm], filter_width), 0.0)

    def schedule(count):
        index = jnp.clip(jnp.asarray(count), 0, norms.size).astype(int)
        return peak_value * jnp.asarray(table, float)[index]

    return schedule


def _warmup_then(
    factor: Callable[[jax.Array, jax.Array], jax.Array],
    peak_value: float | jax.Array,
    total_steps: int,
    *,
    end_value: float | jax.Array,
    warmup_steps: int,
    init_value: float | jax.Array,
    phases: int = 1,
) -> optax.Schedule:
    """Linear warm-up, then `end + (peak - end) factor(p, 1 - p)`, p from 0 to 1."""
    _check_real("peak_value", peak_value)
    _check_real("end_value", end_value)
    _check_real("init_value", init_value)
    _check_int("total_steps", total_steps, minimum=1)
    _check_int("warmup_steps", warmup_steps, minimum=0)
    if warmup_steps > total_steps:
        raise ValueError(
            f"warmup_steps must be at most total_steps = {total_steps}, "
            f"got {warmup_steps}"
        )
    # With no step left after the warm-up the fall is over as it begins.
    decay_steps = max(total_steps - warmup_steps, 1)
    if phases > decay_steps:
        raise ValueError(
            f"phases must be at most {decay_steps}, the steps after the warm-up, got "
            f"{phases}"
        )
    # A phase takes `decay_steps / phases` steps and starts at the first whole one: in
    # units of `1 / phases` of a step, by so much after it is due. Python's integers.
    starts = [-(-phase * decay_steps // phases) for phase in range(phases)]
    late = [start * phases - i * decay_steps for i, start in enumerate(starts)]

    def schedule(count):
        # Integers stay such: float32 has no whole numbers beyond 2^24.
        t = jnp.asarray(count)
        whole = not jnp.issubdtype(t.dtype, jnp.floating)
        t = jnp.clip(t.astype(jnp.int32 if whole else float), 0, total_steps)
        since = jnp.maximum(t - warmup_steps, 0)
        first = jnp.asarray(starts, since.dtype)
        phase = jnp.searchsorted(first, since, side="right") - 1
        parts = (since - first[phase]) * phases + jnp.asarray(late, t.dtype)[phase]
        # A fractional step may lie beyond the end, before the next whole step.
        parts = jnp.where(parts < decay_steps, parts, parts - decay_steps)
        parts = jnp.where(t < total_steps, parts, decay_steps)
        spent = parts.astype(float) / decay_steps
        left = (decay_steps - parts).astype(float) / decay_steps
        rate = end_value + (peak_value - end_value) * factor(spent, left)
        if warmup_steps == 0:
            return rate
        rising = init_value + (peak_value - init_value) * (
            t.astype(float) / warmup_steps
        )
        return jnp.where(t < warmup_steps, rising, rate)

    return schedule


def _refine(norms: np.ndarray, power: int, filter_width: float) -> np.ndarray:
    """The normalised schedule of norms of shape (T,)."""
    from scipy import ndimage  # takes half a second to import

    width = 2 * (share_of(filter_width, norms.size) // 2) + 1
    # The mirror on the right keeps the filter from flattening the end of the run.
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    smooth = ndimage.median_filter(padded, size=width, mode="nearest")[: norms.size]
    # The scale cancels; taking it out first keeps tiny norms from overflowing.
    weights = (smooth / smooth.min()) ** power
    later = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    values = weights * later
    return values / values.max()


def _read_norms(path: Path, field: str) -> np.ndarray:
    """The norm of every step up to the last one that the metrics file holds."""
    by_step: dict[int, float] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            if field in record:
                by_step[int(record["step"])] = float(record[field])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"gradient_norms: {path}, line {number} is no record with a step "
                f"and a number in {field!r}"
            ) from error
    if not by_step:
        raise ValueError(f"gradient_norms: {path} has no record with {field!r}")
    steps = np.array(sorted(by_step))
    # Runs count from 1, so a first record at step 10 means that nine are missing.
    every_step = np.arange(min(1, steps[0]), steps[-1] + 1)
    return np.interp(every_step, steps, [by_step[step] for step in steps.tolist()])


def share_of(share: float, count: int) -> int:
    """`floor(share count)`, also where the product is just short of an integer."""
    return math.floor(share * count * (1 + 1e-14))


def _check_real(name, value, minimum=-math.inf, maximum=math.inf):
    """Refuses plain numbers out of range; arrays may be traced and pass."""
    if isinstance(value, jax.Array | np.ndarray):
        return
    if not (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and minimum <= float(value) <= maximum
    ):
        bounds = "" if math.isinf(minimum) else f" of at least {minimum:g}"
        bounds += "" if math.isinf(maximum) else f" and at most {maximum:g}"
        raise ValueError(f"{name} must be a finite number{bounds}, got {value!r}")


def _check_int(name, value, minimum):
    """Refuses what is no integer of at least `minimum`, or no count of steps."""
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or not minimum <= value < 2**31
    ):
        raise ValueError(
            f"{name} must be an integer >= {minimum} and below 2^31, got {value!r}"
        )
