"""Methods whose matrices stay on a sphere: MuonH, AdamH, COSMOS-H and SOAP-H.

Each is :func:`optlab.hyperball` around a direction, with AdamW on the other leaves::

    W' = W - lr R u / max(|u|_F, 1e-10) ;  W <- W' R / |W'|_F          R = |W_0|_F

Held against marin-community/marin, MuonH of muonh.py at commit 05422e2 and AdamH of
adamh.py at 0084342; SOAP-H with KL factors against KellerJordan/modded-nanogpt, track
3, at f411b3d. COSMOS-H is ours. Deviations:

* `R` is the initial norm; marin takes that of the current matrix, which differs by
  rounding, and drifts in bfloat16.
* heads are Adam's, as tables are; in marin they are AdamH's.
* gradients are not clipped first.
* MuonH has Muon's coefficients by default; marin's are five triples, track 3 takes
  twelve steps to the exact polar factor.

None of them decays a matrix: its norm is constant. `adam_weight_decay` is that of the
other leaves.

References:
  `MuonH and AdamH <https://github.com/marin-community/marin>`_,
  marin-community/marin, 2026.
"""

from functools import partial
from typing import Any, Unpack

import optax

from optlab import checks
from optlab.compose import matrix_optimizer, scale_by_adam
from optlab.optimizers.cosmos import cosmos
from optlab.optimizers.muon import scale_by_muon
from optlab.optimizers.soap import soap
from optlab.options import (
    MatrixOptions,
    MuonOptions,
    NewtonSchulzOptions,
    Number,
    Rate,
    pick,
    takes,
    takes_as,
)
from optlab.wrappers.hyperball import hyperball


def _on_sphere(
    method: Any, learning_rate: Rate, options: Any
) -> optax.GradientTransformationExtraArgs:
    """A method with its own step replaced."""
    return method.__wrapped__(learning_rate, **options, step=hyperball)


@takes(MuonOptions, without=("weight_decay",), adam_weight_decay=0.0)
def muon_h(
    learning_rate: Rate,
    *,
    momentum: Number = 0.95,
    ns_eps: Number = 1e-7,
    **options: Unpack[MuonOptions],
) -> optax.GradientTransformationExtraArgs:
    """Muon on a sphere, AdamW on embeddings, heads and vectors.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.muon_h(2e-2, adam_learning_rate=6e-4)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: the relative step of the hidden matrices, a number or a schedule.
      momentum: decay of the momentum, in [0, 1).
      ns_eps: added to the norm of the momentum, which is a sum.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range, or a matrix is zero.
    """
    checks.non_negative(ns_eps=ns_eps)
    direction = partial(
        scale_by_muon,
        momentum,
        eps=ns_eps,
        average="sum",
        **pick(NewtonSchulzOptions, options),
    )
    return matrix_optimizer(direction, learning_rate, {**options, "step": hyperball})


@takes(
    MatrixOptions,
    without=("weight_decay", "distribute", "chunk_bytes"),
    adam_weight_decay=0.0,
)
def adam_h(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    **options: Unpack[MatrixOptions],
) -> optax.GradientTransformationExtraArgs:
    """Adam on a sphere, AdamW on embeddings, heads and vectors.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.adam_h(2e-2, adam_learning_rate=6e-4)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: the relative step of the hidden matrices, a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range, or a matrix is zero.
    """
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps)

    def direction(*, mu_dtype: Any, roles: Any) -> optax.GradientTransformation:
        del roles
        return scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    return matrix_optimizer(direction, learning_rate, {**options, "step": hyperball})


@takes_as(cosmos, without=("weight_decay",), adam_weight_decay=0.0)
def cosmos_h(
    learning_rate: Rate, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """COSMOS on a sphere, AdamW on embeddings, heads and vectors.

    The learning rate is the relative step of the hidden matrices.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.cosmos_h(2e-2, rank=2, adam_learning_rate=6e-4)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      **options: of :func:`optlab.cosmos`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range, or a matrix is zero.
    """
    return _on_sphere(cosmos, learning_rate, options)


@takes_as(soap, without=("weight_decay",), adam_weight_decay=0.0)
def soap_h(
    learning_rate: Rate, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """SOAP on a sphere, AdamW on embeddings, heads and vectors.

    The learning rate is the relative step of the hidden matrices. The first call
    changes no parameter, as SOAP's.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.soap_h(2e-2, adam_learning_rate=6e-4)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      **options: of :func:`optlab.soap`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range, or a matrix is zero.
    """
    return _on_sphere(soap, learning_rate, options)
