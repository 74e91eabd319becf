"""Shapes of the rates over a run: the schedules of the runner by name.

A schedule here is a share of the peak rate, from the step after the warm-up on.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import optlab
from experiments import records
from optlab.checks import non_negative
from optlab.schedules import share_of

# Fields of a record with the norms that `refined` reads.
_NORMS = {"l1": "grad_norm_l1", "l2": "grad_norm"}
_SHAPES = ("linear", "sqrt")
# Steps that are compared at once.
_BLOCK = 1 << 16


def _constant(steps: int, warmup: int) -> optax.Schedule:
    """The peak rate to the end."""
    del steps, warmup
    return optax.constant_schedule(1.0)


def _linear_decay(steps: int, warmup: int, *, end_value: float = 0.0) -> optax.Schedule:
    """A straight line to the end.

    Args:
      end_value: share of the peak at the end.
    """
    del warmup
    non_negative(end_value=end_value)
    return optlab.linear_decay_schedule(1.0, steps, end_value=end_value)


def _cosine(steps: int, warmup: int, *, end_value: float = 0.0) -> optax.Schedule:
    """Half a cosine to the end.

    Args:
      end_value: share of the peak at the end.
    """
    del warmup
    non_negative(end_value=end_value)
    return optax.cosine_decay_schedule(1.0, steps, alpha=end_value)


def _wsd(
    steps: int,
    warmup: int,
    *,
    decay_fraction: float = 0.2,
    end_value: float = 0.0,
    shape: str = "linear",
) -> optax.Schedule:
    """Warm-up, stable, decay: the peak rate, and a decay in the last steps.

    Args:
      decay_fraction: share of all steps that the decay takes; 0: there is none yet.
      end_value: share of the peak at the end.
      shape: of the decay: linear, or sqrt, one minus the root of the share of the decay
        that is over.
    """
    non_negative(end_value=end_value)
    if shape not in _SHAPES:
        raise ValueError(f"shape: given {shape!r}, allowed {', '.join(_SHAPES)}")
    total = steps + warmup
    if not 0 <= decay_fraction <= 1 or share_of(decay_fraction, total) > steps:
        raise ValueError(
            f"decay_fraction: given {decay_fraction}, allowed 0 to "
            f"{steps / total:.4g}, what the warm-up leaves"
        )
    decay = share_of(decay_fraction, total)
    if not decay:
        return optax.constant_schedule(1.0)
    left = optlab.linear_decay_schedule(1.0, decay)

    def schedule(step):
        share = left(jnp.maximum(step - (steps - decay), 0))
        share = 1 - jnp.sqrt(1 - share) if shape == "sqrt" else share
        return end_value + (1 - end_value) * share

    return schedule


def _uba(
    steps: int,
    warmup: int,
    *,
    phi: float = 1.0,
    end_value: float = 0.0,
    phases: int = 1,
) -> optax.Schedule:
    """The unified budget-aware schedule of Tang et al. (arXiv 2505.24452).

    Args:
      phi: shape of the fall: 2 is cosine, a smaller one stays high longer, 0 stays at
        the peak.
      end_value: share of the peak at the end.
      phases: how many times the fall is repeated.
    """
    del warmup
    non_negative(end_value=end_value)
    return optlab.uba_schedule(1.0, steps, phi, end_value=end_value, phases=phases)


def _refined(
    steps: int,
    warmup: int,
    *,
    run: str | None = None,
    norm: str = "l2",
    filter_width: float = 0.1,
) -> optax.Schedule:
    """What an earlier run's gradient norms call for (Defazio et al., 2310.07831).

    Where that run had another number of steps, its norms are stretched to these.

    Args:
      run: folder of the earlier run.
      norm: l1 for Adam and sign methods, l2 for SGD.
      filter_width: of the median filter over the norms, as a share of the run.
    """
    if norm not in _NORMS:
        raise ValueError(f"norm: given {norm!r}, allowed {', '.join(_NORMS)}")
    if run is None:
        raise ValueError("run: missing, the folder of the run to refine")
    norms = _norms_of(run, norm)
    places = np.linspace(0, len(norms) - 1, steps + warmup)
    stretched = np.interp(places, np.arange(len(norms)), norms)
    if steps < 2:
        raise ValueError(f"run: {steps} steps after the warm-up are too few to refine")
    return optlab.refined_schedule(
        stretched[warmup:], 1.0, norm=norm, filter_width=filter_width
    )


# Name in `schedule.name` -> (steps after the warm-up, steps of the warm-up, own
# arguments) -> share of the peak.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "linear": _linear_decay,
    "linear_decay": _linear_decay,
    "cosine": _cosine,
    "wsd": _wsd,
    "uba": _uba,
    "refined": _refined,
}


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """The share of the peak rate at each step, 1 at the peak.

    Warm-up rises linearly over `warmup` steps, as `(step + 1) / (warmup + 1)`, so that
    the first step is no idle one.

    Args:
      config: the whole config; `schedule` and `train.steps` are read.

    Returns:
      A function from the step (the first is 0) to a scalar.

    Raises:
      ValueError: an argument is out of range; the message begins with its name.
    """
    section = config.schedule
    return _make(
        section.name, config.train.steps, section.warmup_fraction, section.kwargs
    )


def _make(
    name: str, total: int, warmup_fraction: float, kwargs: Mapping[str, Any]
) -> optax.Schedule:
    warmup = share_of(warmup_fraction, total)
    decay = SCHEDULES[name](total - warmup, warmup, **kwargs)

    def schedule(step):
        rising = (step + 1) / (warmup + 1)
        return jnp.where(step < warmup, rising, decay(jnp.maximum(step - warmup, 0)))

    return schedule


def _norms_of(run: str, norm: str) -> np.ndarray:
    """The norm of every step of a run, from what its records have."""
    path = pathlib.Path(run).expanduser() / records.NAME
    try:
        status = path.stat()
        return _read_norms(path, _NORMS[norm], (status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise ValueError(f"run: {path}: {error.strerror}") from error


@functools.lru_cache(maxsize=8)
def _read_norms(path: pathlib.Path, field: str, version: Any) -> np.ndarray:
    """The same, read once from a file that stays as it is."""
    del version
    by_step: dict[int, float] = {}
    for record in records.read(path):
        value = record.get(field)
        if isinstance(value, int | float) and 0 < value < float("inf"):
            by_step[record["step"]] = value
    if len(by_step) < 2:
        raise ValueError(f"run: {path} has no two records with {field}")
    steps = np.array(sorted(by_step))
    every_step = np.arange(min(1, steps[0]), steps[-1] + 1)
    return np.interp(every_step, steps, [by_step[step] for step in steps.tolist()])


def digest(config: ml_collections.ConfigDict) -> str:
    """A hash of what a schedule reads besides the config; empty if it reads nothing."""
    if config.schedule.name != "refined":
        return ""
    norms = _norms_of(config.schedule.kwargs.run, config.schedule.kwargs.norm)
    return hashlib.sha256(norms.tobytes()).hexdigest()


def warmup_steps(fields: Mapping[str, Any]) -> int:
    """Steps of the warm-up, of a config's fields by dotted path."""
    return share_of(fields["schedule.warmup_fraction"], fields["train.steps"])


def first_change(
    before: Mapping[str, Any], now: Mapping[str, Any], steps: int
) -> tuple[int, float, float] | None:
    """The first of so many steps at which two configs have another share of the peak.

    Args:
      before: a config's fields by dotted path.
      now: another one's.
      steps: how many were made.

    Returns:
      Its number from 1 and both shares, None where there is none.

    Raises:
      ValueError: one of them makes no schedule.
    """
    schedules = [_of_fields(fields) for fields in (before, now)]
    for start in range(0, steps, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, steps), dtype=np.int32)
        old, new = (np.asarray(schedule(block)) for schedule in schedules)
        old, new = np.broadcast_to(old, block.shape), np.broadcast_to(new, block.shape)
        for i in np.flatnonzero(old != new)[:1]:
            return start + int(i) + 1, float(old[i]), float(new[i])
    return None


def _of_fields(fields: Mapping[str, Any]) -> optax.Schedule:
    head = "schedule.kwargs."
    own = {x.removeprefix(head): fields[x] for x in fields if x.startswith(head)}
    name, total = fields["schedule.name"], fields["train.steps"]
    try:
        return _make(name, total, fields["schedule.warmup_fraction"], own)
    except (LookupError, TypeError) as error:
        raise ValueError(f"schedule.name: {name!r} with {own} is none") from error
