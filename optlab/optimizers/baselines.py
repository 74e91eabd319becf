"""What the methods are compared with: optax's AdamW and SGD, as entries."""

from typing import Unpack

import optax

from optlab import checks
from optlab.compose import descend, scale_by_adam
from optlab.options import DecayOptions, LeafOptions, Number, Rate, pick, takes


@takes(LeafOptions)
def adamw(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    **options: Unpack[LeafOptions],
) -> optax.GradientTransformationExtraArgs:
    """optax's AdamW with state of at least float32. Roles decide decay alone.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps)
    mu_dtype = options.get("mu_dtype")
    checks.dtype(mu_dtype=mu_dtype)
    direction = scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return descend(direction, learning_rate, **pick(DecayOptions, options))


@takes(DecayOptions)
def sgd(
    learning_rate: Rate,
    *,
    momentum: Number = 0.9,
    nesterov: bool = False,
    **options: Unpack[DecayOptions],
) -> optax.GradientTransformationExtraArgs:
    """optax's SGD with momentum, and decoupled decay. Roles decide decay alone.

    Args:
      learning_rate: a number or a schedule.
      momentum: decay of the momentum, in [0, 1).
      nesterov: whether the momentum looks one gradient ahead.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.fraction(momentum=momentum)
    checks.boolean(nesterov=nesterov)
    direction = optax.trace(momentum, nesterov)
    return descend(direction, learning_rate, **pick(DecayOptions, options))
