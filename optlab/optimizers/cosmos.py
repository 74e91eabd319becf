"""COSMOS: SOAP in the leading eigenspace of the gradients, Muon in the rest of it.

For a matrix `W` of shape `(d_in, d_out)` with gradient `G` at step `t = 1, 2, ...`::

    M_t = b1 M_{t-1} + G
    U_t = qr(b2 U_{t-1} S_{t-1} + (1-b2) G G^T U_{t-1}).Q       U_1: leading r of G
    S_t = b2 T^T S_{t-1} T + (1-b2) (U_t^T G)(U_t^T G)^T        T = U_{t-1}^T U_t
    V_t = b2 V_{t-1} + (1-b2) (U_t^T G)^2
    N   = (G + b1 M_t) / (1 + b1 c1)                            c1 = (1-b1^t)/(1-b1)
    A   = U_t [ U_t^T N / (sqrt(V_t / (1-b2^t)) + eps) ]
    B   = NS_5(N - U_t U_t^T N),  scaled to RMS 1
    direction = A + gamma B,  scaled to RMS 1

Held against the authors' code, lliu606/COSMOS at commit 61de180. Deviations:

* without Nesterov `N = M_t / c1`; the authors' code drops the momentum there.
* `B` is zero where `N` lies in the span of `U_t` up to rounding (always at t = 1 for
  gradients of rank up to r), and so is a row of `U_t^T N` that is nothing but rounding
  (always at t = 1 for gradients of rank below r); the authors' code scales either
  rounding to a step of full size.
* the AdamW half takes `adam_b1`; the authors' code has 0.1 and 0.9 written into it.
* matrices are told from embeddings by role, not by `shape[0] <= 10000`.
* a rank above `min(d_in, d_out)` is cut to that. The authors' code crashes above `d_in`
  alone; between `d_out` and `d_in` it works with the whole rank, whose last directions
  are those of no gradient at t = 1, and its steps differ from ours.
* gradients with a norm above 3e15 (in float32) are scaled down to it.

In their arguments, `learning_rate = lr * lr_ratio`, `weight_decay = wd / lr_ratio`,
`adam_learning_rate = lr`, `adam_weight_decay = wd`, `adam_b2 = b2`, `adam_eps = eps`.

References:
  Liu et al., `COSMOS: A Hybrid Adaptive Optimizer for Memory-Efficient Training of
  LLMs <https://arxiv.org/abs/2502.17410>`_, 2025.
"""

import math
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import (
    bias_correction,
    cast_like,
    matrix_optimizer,
    to_state_dtype,
    zero_state,
)
from optlab.leaves import over_leaves
from optlab.matrices.buckets import Distribute
from optlab.matrices.factors import map_factors, zero_factors
from optlab.matrices.linalg import (
    cap_norm,
    frobenius_norm,
    leading_left_singular_vectors,
    safe_sqrt,
    subspace_step,
    unit,
)
from optlab.matrices.orthogonalize import orthogonalize
from optlab.matrices.precision import Passes, check_passes, product, rounding
from optlab.options import MatrixOptions, Number, Rate, Roles, takes
from optlab.roles import as_rule, tree_views


class ScaleByCosmosState(NamedTuple):
    """State of COSMOS; stack axes stand in front of every factor."""

    count: jax.Array  # ()
    mu: optax.Updates  # M, as the parameters
    basis: optax.Updates  # U, (..., d_in, r)
    covariance: optax.Updates  # S, (..., r, r)
    nu: optax.Updates  # V, (..., r, d_out)

    FACTORS = ("basis", "covariance", "nu")


def _directions(
    gradient: jax.Array,  # (S, m, n)
    momentum: jax.Array,  # (S, m, n), the Nesterov average N
    basis: jax.Array,  # (S, m, r)
    covariance: jax.Array,  # (S, r, r)
    nu: jax.Array,  # (S, r, n)
    *,
    t: jax.Array,
    b2: Any,
    eps: Any,
    gamma: Any,
    ns_steps: int,
    ns_dtype: DTypeLike | None,
    basis_precision: Passes | None,
) -> tuple[jax.Array, ...]:
    """One step on a stack: the direction and the new basis, covariance and nu."""
    g, x = cap_norm(gradient), cap_norm(momentum)

    def mm(a: jax.Array, b: jax.Array) -> jax.Array:
        return product(a, b, "basis", basis_precision)

    # A scalar predicate: under vmap both branches would run.
    new_basis = lax.cond(
        t == 1,
        lambda: leading_left_singular_vectors(g, basis.shape[-1]),
        lambda: subspace_step(basis, covariance, g, b2, basis_precision),
    )
    turn = mm(basis.mT, new_basis)
    projected = mm(new_basis.mT, g)
    covariance = b2 * mm(turn.mT, mm(covariance, turn)) + (1 - b2) * mm(
        projected, projected.mT
    )
    nu = b2 * nu + (1 - b2) * jnp.square(projected)

    inside = mm(new_basis.mT, x)
    rest = x - mm(new_basis, inside)
    # What holds nothing but rounding would be brought to full size below.
    noise = 32 * rounding("basis", basis_precision, x.dtype) * _norm(x)
    lengths = frobenius_norm(inside, axis=-1, keepdims=True)
    inside = jnp.where(lengths > noise, inside, 0.0)
    rest = jnp.where(_norm(rest) > noise, rest, 0.0)
    correction = jnp.sqrt(bias_correction(b2, t, x.dtype))
    adapted = product(
        new_basis,
        inside / (safe_sqrt(nu) / correction + eps),
        "rotation",
        basis_precision,
    )
    ortho = _unit_rms(orthogonalize(rest, steps=ns_steps, dtype=ns_dtype), eps)
    return _unit_rms(adapted + gamma * ortho, eps), new_basis, covariance, nu


def _norm(x: jax.Array) -> jax.Array:
    return frobenius_norm(x, axis=(-2, -1), keepdims=True)


def _unit_rms(x: jax.Array, eps: Any) -> jax.Array:
    return math.sqrt(x.shape[-2] * x.shape[-1]) * unit(x, (-2, -1), eps)


def scale_by_cosmos(
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    rank: int = 64,
    gamma: Number = 0.2,
    *,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    basis_precision: Passes | None = None,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of COSMOS, of RMS one, for trees of hidden matrices only.

    See :func:`optlab.cosmos` for the arguments, and :mod:`optlab.optimizers.cosmos`
    for the equations.

    Returns:
      The transform; its state holds `d_in d_out + r (d_in + r + d_out)` numbers a
      matrix.

    Raises:
      ValueError: an argument is out of range, or a leaf is no matrix.
    """
    checks.static(rank=rank, ns_steps=ns_steps)
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps, gamma=gamma)
    checks.positive_int(rank=rank)
    checks.newton_schulz_steps(ns_steps=ns_steps)
    checks.boolean(nesterov=nesterov)
    checks.dtype(ns_dtype=ns_dtype, mu_dtype=mu_dtype)
    check_passes(basis_precision=basis_precision)
    checks.distribution(distribute, chunk_bytes)
    rule = as_rule(roles)

    def init_fn(params):
        views = tree_views(params, rule, "cosmos")

        def zeros(shape):
            return zero_factors(
                lambda v: shape(v, min(rank, v.m, v.n)), params, views, distribute
            )

        return ScaleByCosmosState(
            count=jnp.zeros([], jnp.int32),
            mu=zero_state(params, mu_dtype),
            basis=zeros(lambda v, r: (v.m, r)),
            covariance=zeros(lambda v, r: (r, r)),
            nu=zeros(lambda v, r: (r, v.n)),
        )

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        t = state.count + 1
        gradients = to_state_dtype(updates)
        mu = jax.tree.map(lambda g, m: b1 * m + g, gradients, state.mu)

        def average(g, m):
            weight = bias_correction(b1, t, g.dtype) / (1 - b1)
            return g, (g + b1 * m) / (1 + b1 * weight) if nesterov else m / weight

        directions, basis, covariance, nu = map_factors(
            partial(
                _directions,
                t=t,
                b2=b2,
                eps=eps,
                gamma=gamma,
                ns_steps=ns_steps,
                ns_dtype=ns_dtype,
                basis_precision=basis_precision,
            ),
            tree_views(updates, rule, "cosmos"),
            (gradients, mu),
            (state.basis, state.covariance, state.nu),
            made=average,
            distribute=distribute,
            chunk_bytes=chunk_bytes,
        )
        mu = cast_like(mu, state.mu)
        new_state = ScaleByCosmosState(t, mu, basis, covariance, nu)
        return cast_like(directions, updates), new_state

    return over_leaves(init_fn, update_fn, real="cosmos", distribute=distribute)


@takes(MatrixOptions)
def cosmos(
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
    """COSMOS on the hidden matrices, AdamW on embeddings, heads and vectors.

    The update of a matrix has an RMS of exactly the learning rate. The equations and
    the deviations from the authors' code stand in :mod:`optlab.optimizers.cosmos`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.cosmos(2e-3, rank=2, weight_decay=0.1)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of the hidden matrices, a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the covariance and the second moment, in [0, 1).
      eps: added to the denominators.
      rank: of the basis, cut to the smaller side of each matrix. The paper takes 5%
        of the width.
      gamma: weight of the orthogonalized rest; the paper takes 0.25 to 0.5.
      nesterov: whether the momentum looks one gradient ahead.
      ns_steps: Newton-Schulz steps on the rest.
      ns_dtype: of their products. None: float32 on CPUs, bfloat16 on GPUs and TPUs,
        float64 for such momenta, see :mod:`optlab.matrices.precision`.
      basis_precision: of the products with the basis, "default", "high" or "highest".
        None: by the backend, too.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    direction = partial(
        scale_by_cosmos,
        *(b1, b2, eps, rank, gamma),
        nesterov=nesterov,
        ns_steps=ns_steps,
        ns_dtype=ns_dtype,
        basis_precision=basis_precision,
    )
    return matrix_optimizer(direction, learning_rate, options)
