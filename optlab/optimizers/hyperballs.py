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
from typing import Any, Literal, Unpack

import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import matrix_optimizer, scale_by_adam
from optlab.matrices.orthogonalize import Coefficients
from optlab.matrices.precision import Passes
from optlab.optimizers.cosmos import scale_by_cosmos
from optlab.optimizers.muon import scale_by_muon
from optlab.optimizers.soap import Factors, soap_parts
from optlab.options import MatrixOptions, Number, Rate, takes
from optlab.wrappers.hyperball import hyperball

_takes = takes(MatrixOptions, without=("weight_decay",), adam_weight_decay=0.0)


@_takes
def muon_h(
    learning_rate: Rate,
    *,
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_coeffs: Coefficients = "muon",
    ns_eps: Number = 1e-7,
    normalize: Literal["frobenius", "schatten4"] = "frobenius",
    ns_dtype: DTypeLike | None = None,
    **options: Unpack[MatrixOptions],
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
      nesterov: whether the momentum looks one gradient ahead.
      ns_steps, ns_coeffs, normalize, ns_dtype: of Newton-Schulz, see
        :func:`optlab.muon`.
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
        nesterov=nesterov,
        eps=ns_eps,
        ns_steps=ns_steps,
        ns_coeffs=ns_coeffs,
        normalize=normalize,
        ns_dtype=ns_dtype,
        average="sum",
    )
    return matrix_optimizer(direction, learning_rate, options, step=hyperball)


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

    return matrix_optimizer(direction, learning_rate, options, step=hyperball)


@_takes
def cosmos_h(
    learning_rate: Rate,
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    rank: int = 64,
    gamma: Number = 0.2,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    basis_precision: Passes | None = None,
    **options: Unpack[MatrixOptions],
) -> optax.GradientTransformationExtraArgs:
    """COSMOS on a sphere, AdamW on embeddings, heads and vectors.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.cosmos_h(2e-2, rank=2, adam_learning_rate=6e-4)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: the relative step of the hidden matrices, a number or a schedule.
      b1, b2, eps, rank, gamma, nesterov: of COSMOS, see :func:`optlab.cosmos`.
      ns_steps, ns_dtype, basis_precision: of its products, see there.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range, or a matrix is zero.
    """
    direction = partial(
        scale_by_cosmos,
        *(b1, b2, eps, rank, gamma),
        nesterov=nesterov,
        ns_steps=ns_steps,
        ns_dtype=ns_dtype,
        basis_precision=basis_precision,
    )
    return matrix_optimizer(direction, learning_rate, options, step=hyperball)


@takes(MatrixOptions, without=("weight_decay",), adam_weight_decay=0.0, adam_b1=0.95)
def soap_h(
    learning_rate: Rate,
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    precondition_interval: int = 10,
    max_dim: int = 10000,
    one_sided: bool = False,
    basis_precision: Passes | None = None,
    factors: Factors = "shampoo",
    shampoo_beta: Number | None = None,
    initial_eigenvalue: Number | None = None,
    **options: Unpack[MatrixOptions],
) -> optax.GradientTransformationExtraArgs:
    """SOAP on a sphere, AdamW on embeddings, heads and vectors.

    The first call changes no parameter, as SOAP's.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.soap_h(2e-2, adam_learning_rate=6e-4)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: the relative step of the hidden matrices, a number or a schedule.
      b1, b2, eps, precondition_interval: of SOAP, see :func:`optlab.soap`.
      max_dim, one_sided, basis_precision: of its bases, see there.
      factors, shampoo_beta, initial_eigenvalue: of its factors, see there.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range, or a matrix is zero.
    """
    direction, parts = soap_parts(
        *(b1, b2, eps, precondition_interval, max_dim),
        one_sided=one_sided,
        basis_precision=basis_precision,
        factors=factors,
        shampoo_beta=shampoo_beta,
        initial_eigenvalue=initial_eigenvalue,
    )
    return matrix_optimizer(direction, learning_rate, options, step=hyperball, **parts)
