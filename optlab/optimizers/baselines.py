"""What the methods are compared with: optax's AdamW and SGD, as entries."""

from typing import Any

import optax

from optlab import checks
from optlab.compose import descend


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Any = 0.9,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's AdamW with state of at least float32."""
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps)
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return descend(direction, learning_rate, weight_decay, weight_decay_mask)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Any = 0.9,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's SGD with momentum, and decoupled decay."""
    checks.fraction(momentum=momentum)
    direction = optax.trace(momentum, nesterov)
    return descend(direction, learning_rate, weight_decay, weight_decay_mask)
