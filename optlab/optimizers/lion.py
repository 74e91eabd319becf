"""Lion: the sign of an interpolation of momentum and gradient.

For every entry of every leaf with gradient `g`::

    direction = sign(b1 m + (1-b1) g)
    m = b2 m + (1-b2) g

optax's `scale_by_lion` is the reference implementation in JAX (it was held against
google/automl at a commit that was not recorded, whose steps it follows), and
:func:`optlab.scale_by_lion` is that very function, with its arguments and the state
that optax gives it. :func:`optlab.lion` runs it in the state's precision. Deviation:
there the momentum is at least float32.

References:
  Chen et al., `Symbolic Discovery of Optimization Algorithms
  <https://arxiv.org/abs/2302.06675>`_, 2023.
"""

from typing import Unpack

import optax

from optlab import checks
from optlab.compose import descend
from optlab.options import (
    DecayOptions,
    LeafOptions,
    Number,
    Rate,
    pick,
    takes,
)

scale_by_lion = optax.scale_by_lion


@takes(LeafOptions, one_momentum=False)  # b2 is the decay of its momentum
def lion(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.99,
    **options: Unpack[LeafOptions],
) -> optax.GradientTransformationExtraArgs:
    """`optax.lion` behind this library's masks, checks and precision of state.

    Every entry moves by the learning rate, so take a rate 3 to 10 times below
    AdamW's and a decay as much above. The paper has b1 0.95, b2 0.98 for language
    models.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.lion(1e-4, weight_decay=1.0)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: a number or a schedule.
      b1: weight of the momentum in the direction, in [0, 1).
      b2: decay of the momentum, in [0, 1).
      **options: see :mod:`optlab.options`.
      roles: what `weight_decay_mask="matrices"` goes by. Every leaf gets the same step,
        so they decide nothing else.

    Returns:
      The optimizer; its state is one number a parameter.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.fraction(b1=b1, b2=b2)
    mu_dtype = options.get("mu_dtype")
    checks.dtype(mu_dtype=mu_dtype)
    direction = scale_by_lion(b1, b2, mu_dtype=mu_dtype)
    return descend(direction, learning_rate, **pick(DecayOptions, options))
