"""SOAP: Adam in the eigenbases of Shampoo's two preconditioners.

The first call only initialises. At every later one, `t = 1, 2, ...`, for a matrix `W`
of shape `(d_in, d_out)` with gradient `G`::

    G' = Q_L^T G Q_R ;  M_t = b1 M_{t-1} + (1-b1) G
    V_t = b2 V_{t-1} + (1-b2) G'^2
    direction = sqrt(1-b2^t)/(1-b1^t) Q_L [ Q_L^T M_t Q_R / (sqrt(V_t) + eps) ] Q_R^T
    L_t = b2 L_{t-1} + (1-b2) G G^T ;  R_t = b2 R_{t-1} + (1-b2) G^T G
    every f-th t:  sort each basis by diag(Q^T L Q), V alike ;  Q_L = qr(L_t Q_L).Q

The first call sets `L = (1-b2) G G^T`, `R = (1-b2) G^T G` and takes their eigenvectors
for bases. With f = 3 the bases are refreshed at calls 4, 7, and so on.

With `factors="kl"` the factors are those of KL-Shampoo, each side whitened by the
other, :mod:`optlab.matrices.kl`; "kl_v3" and "rekls_v3" are NVIDIA's forms of that.

Held against the authors' code, nikhilvyas/SOAP (commit not recorded). Deviations:

* the momentum stays in the original space, where the authors' code goes back and forth;
  the two are the same, since the basis changes only between two steps.
* stacked axes and convolutions are matrices by role; the authors' code has one factor
  for every axis of a tensor. Embeddings and heads get AdamW, whatever their size.
* in a null space of `L` or `R` (always on the longer side of a matrix at the first
  call) eigenvectors are arbitrary; here they are the completion of the others that
  leans on the first coordinates, the same on every machine. The authors' are LAPACK's.
* AdamW's `eps` stands beside the corrected root in the other leaves, as in optax.
* decay is taken from the parameters before the update, not after it.
* gradients with a norm above 3e15 (in float32) are scaled down to it.

"kl_v3" and "rekls_v3" were held against NVIDIA-NeMo/Emerging-Optimizers, soap_v3.py at
commit fd77292, and "kl" with `initial_eigenvalue=0.1` against KellerJordan/
modded-nanogpt, track 3, at f411b3d. By default the eigenvalues of "kl" start at the
root mean square of the first gradient. On square Gaussian gradients the cosine of `L`
to the covariance is then 0.78, 0.85, 0.91 and 0.99 after 0, 5, 10 and 50 steps. V3
starts from eigenvalues of 0, clamped to `eps`, so that with the default eps its bases
are those of the first gradient for about 300 steps. The least eigenvalue is a share of
the largest one; in track 3 it is a number.

References:
  Lin et al., `Understanding and Improving Shampoo and SOAP via Kullback-Leibler
  Minimization <https://arxiv.org/abs/2509.03378>`_, 2025.
  Vyas et al., `SOAP: Improving and Stabilizing Shampoo using Adam
  <https://arxiv.org/abs/2409.11321>`_, 2024.
"""

from collections import namedtuple
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack

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
    scale_by_adam,
    to_state_dtype,
    zero_state,
)
from optlab.leaves import over_leaves
from optlab.matrices.buckets import Distribute
from optlab.matrices.factors import map_factors, zero_factors
from optlab.matrices.kl import kl_directions, v3_directions
from optlab.matrices.linalg import cap_norm, eigenbasis, refresh_eigenbasis, safe_sqrt
from optlab.matrices.precision import Passes, check_passes, gram_matrix, product
from optlab.options import MatrixOptions, Number, Rate, Roles, takes
from optlab.roles import View, as_rule, tree_views


class ScaleBySoapState(NamedTuple):
    """State of SOAP; stack axes stand in front of every factor.

    A side that keeps the identity has factors of shape `(..., 1, 1)`.
    """

    count: jax.Array  # (), calls so far, the initialising one included
    mu: optax.Updates  # M, as the parameters
    nu: optax.Updates  # V, (..., d_in, d_out), in the bases
    gram_left: optax.Updates  # L, (..., d_in, d_in)
    gram_right: optax.Updates  # R, (..., d_out, d_out)
    basis_left: optax.Updates  # Q_L, (..., d_in, d_in)
    basis_right: optax.Updates  # Q_R, (..., d_out, d_out)

    FACTORS = ("nu", "gram_left", "gram_right", "basis_left", "basis_right")


class ScaleByKlSoapState(
    namedtuple(
        "ScaleByKlSoapState",
        (*ScaleBySoapState._fields, "values_left", "values_right"),
    )
):
    """State of SOAP with KL factors: SOAP's, and the factors' eigenvalues.

    `values_left` are those of L, `(..., d_in, 1)`, and `values_right` those of R,
    `(..., 1, d_out)`.
    """

    __slots__ = ()
    FACTORS = (*ScaleBySoapState.FACTORS, "values_left", "values_right")


Factors = Literal["shampoo", "kl", "kl_v3", "rekls_v3"]
# Whose first call only initialises.
_FIRST_CALL_WAITS = ("shampoo", "kl")


def _directions(
    gradient: jax.Array,  # (S, m, n)
    momentum: jax.Array,  # (S, m, n)
    *factors: jax.Array,  # V (S, m, n), then L, R, Q_L, Q_R
    count: jax.Array,
    b1: Any,
    b2: Any,
    eps: Any,
    beta: Any,
    interval: int,
    basis_precision: Passes | None,
    **unused: Any,
) -> tuple[jax.Array, ...]:
    """One call on a stack: the direction, then what came in, renewed."""
    del unused
    g, x = cap_norm(gradient), cap_norm(momentum)
    nu, grams, bases = factors[0], factors[1:3], factors[3:5]
    left, right = (q.shape[-1] == d for q, d in zip(bases, g.shape[1:], strict=True))

    def rotate(y: jax.Array, back: bool) -> jax.Array:
        mm = partial(product, kind="rotation", passes=basis_precision)
        q_left, q_right = bases
        y = mm(q_left if back else q_left.mT, y) if left else y
        return mm(y, q_right.mT if back else q_right) if right else y

    # The first call has no bases yet: it answers nothing and keeps its zeros.
    first, t = count == 0, jnp.maximum(count, 1)
    weight = jnp.where(first, 0.0, 1 - b2)
    nu = b2 * nu + weight * jnp.square(rotate(g, back=False))
    adapted = rotate(x, back=False) / (safe_sqrt(nu) + eps)
    size = jnp.sqrt(bias_correction(b2, t, g.dtype)) / bias_correction(b1, t, g.dtype)
    direction = jnp.where(first, 0.0, size * rotate(adapted, back=True))
    products = (gram_matrix(g) if left else None, gram_matrix(g.mT) if right else None)
    grams = tuple(
        a if p is None else beta * a + (1 - beta) * p
        for a, p in zip(grams, products, strict=True)
    )

    def initialise():
        return tuple(
            eigenbasis(a, min(g.shape[1:])) if active else q
            for a, q, active in zip(grams, bases, (left, right), strict=True)
        ), nu

    def refresh():
        (q_left, q_right), v = bases, nu
        if left:
            q_left, order = refresh_eigenbasis(grams[0], q_left)
            v = jnp.take_along_axis(v, order[..., :, None], axis=-2)
        if right:
            q_right, order = refresh_eigenbasis(grams[1], q_right)
            v = jnp.take_along_axis(v, order[..., None, :], axis=-1)
        return (q_left, q_right), v

    # A scalar index: under vmap every branch would run.
    due = jnp.where(count % interval == 0, 1, 2)
    bases, nu = lax.switch(
        jnp.where(count == 0, 0, due), (initialise, refresh, lambda: (bases, nu))
    )
    return direction, nu, *grams, *bases


_STEPS = {
    "shampoo": _directions,
    "kl": kl_directions,
    "kl_v3": partial(v3_directions, exact=False),
    "rekls_v3": partial(v3_directions, exact=True),
}


def scale_by_soap(
    b1: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-8,
    precondition_interval: int = 10,
    max_dim: int = 10000,
    *,
    one_sided: bool = False,
    basis_precision: Passes | None = None,
    factors: Factors = "shampoo",
    shampoo_beta: Number | None = None,
    initial_eigenvalue: Number | None = None,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of SOAP, for trees of hidden matrices only.

    It is zero at the first call, but for "kl_v3" and "rekls_v3".

    See :func:`optlab.soap` for the arguments, and :mod:`optlab.optimizers.soap` for
    the equations.

    Returns:
      The transform; its state holds `2 (d_in d_out + d_in^2 + d_out^2)` numbers a
      matrix, and `d_in + d_out` more with KL factors.

    Raises:
      ValueError: an argument is out of range, or a leaf is no matrix.
    """
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps)
    checks.positive_int(precondition_interval=precondition_interval, max_dim=max_dim)
    checks.boolean(one_sided=one_sided)
    checks.one_of(tuple(_STEPS), factors=factors)
    beta = b2 if shampoo_beta is None else shampoo_beta
    checks.fraction(shampoo_beta=beta)
    if initial_eigenvalue is not None:
        checks.positive(initial_eigenvalue=initial_eigenvalue)
    checks.dtype(mu_dtype=mu_dtype)
    check_passes(basis_precision=basis_precision)
    checks.distribution(distribute, chunk_bytes)
    rule = as_rule(roles)

    def sizes(view: View) -> tuple[int, int]:
        """Of the left and the right factor."""
        left = view.m <= max_dim and not (one_sided and view.m > view.n)
        right = view.n <= max_dim and not (one_sided and view.m <= view.n)
        return view.m if left else 1, view.n if right else 1

    def init_fn(params):
        views = tree_views(params, rule, "soap")

        zeros = partial(zero_factors, params=params, views=views, distribute=distribute)
        state = ScaleBySoapState(
            count=jnp.zeros([], jnp.int32),
            mu=zero_state(params, mu_dtype),
            nu=zeros(lambda v: (v.m, v.n)),
            gram_left=zeros(lambda v: (sizes(v)[0], sizes(v)[0])),
            gram_right=zeros(lambda v: (sizes(v)[1], sizes(v)[1])),
            basis_left=zeros(lambda v: (sizes(v)[0], sizes(v)[0])),
            basis_right=zeros(lambda v: (sizes(v)[1], sizes(v)[1])),
        )
        if factors == "shampoo":
            return state
        return ScaleByKlSoapState(
            *state,
            values_left=zeros(lambda v: (sizes(v)[0], 1)),
            values_right=zeros(lambda v: (1, sizes(v)[1])),
        )

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        gradients = to_state_dtype(updates)
        waits = (state.count == 0) & (factors in _FIRST_CALL_WAITS)
        mu = jax.tree.map(
            lambda g, m: jnp.where(waits, m, b1 * m + (1 - b1) * g),
            *(gradients, state.mu),
        )
        step = partial(
            _STEPS[factors],
            count=state.count,
            b1=b1,
            b2=b2,
            eps=eps,
            beta=beta,
            interval=precondition_interval,
            basis_precision=basis_precision,
            initial=initial_eigenvalue,
        )
        directions, *renewed = map_factors(
            step,
            tree_views(updates, rule, "soap"),
            (gradients, mu),
            state[2:],
            distribute=distribute,
            chunk_bytes=chunk_bytes,
        )
        mu = cast_like(mu, state.mu)
        new_state = type(state)(state.count + 1, mu, *renewed)
        return cast_like(directions, updates), new_state

    return over_leaves(init_fn, update_fn, real="soap", distribute=distribute)


class FromSecondCallState(NamedTuple):
    """The calls so far, and the state of what waits for the second."""

    count: jax.Array
    inner: optax.OptState


def adam_from_second_call(*args, **kwargs) -> optax.GradientTransformation:
    """Adam that neither sees nor answers the first gradient, as in SOAP's code."""
    adam = scale_by_adam(*args, **kwargs)

    def init_fn(params):
        return FromSecondCallState(jnp.zeros([], jnp.int32), adam.init(params))

    def update_fn(updates, state, params=None):
        def seen(new, old):
            # A branch would copy what it returns.
            return jax.tree.map(partial(jnp.where, state.count == 0), old, new)

        found, inner = adam.update(updates, state.inner, params)
        updates = seen(found, jax.tree.map(jnp.zeros_like, found))
        inner = seen(inner, state.inner)
        return updates, FromSecondCallState(state.count + 1, inner)

    return optax.GradientTransformation(init_fn, update_fn)


@takes(MatrixOptions, adam_b1=0.95)
def soap(
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
    """SOAP on the hidden matrices, AdamW on embeddings, heads and vectors.

    The first call changes no parameter: it only makes the bases, so that no gradient
    is projected by itself. The equations and the deviations from the authors' code
    stand in :mod:`optlab.optimizers.soap`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.soap(3e-3, weight_decay=0.01)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of the hidden matrices, a number or a schedule; the first call
        uses up `schedule(0)`.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment and, without `shampoo_beta`, of the two
        preconditioners, in [0, 1).
      eps: added to the root of the second moment.
      precondition_interval: updates from one refresh of the bases to the next.
      max_dim: a side longer than this keeps the identity for a basis.
      one_sided: whether only the shorter side is rotated (the input side of square
        matrices), for less state and less work.
      basis_precision: of the rotations, "default", "high" or "highest". None: by the
        backend, see :mod:`optlab.matrices.precision`.
      factors: the two preconditioners: "shampoo"; "kl", each whitened by the other;
        "kl_v3" or "rekls_v3", NVIDIA's forms of that, which step at the first call and
        refresh the bases at every one (the second by eigh).
      shampoo_beta: decay of the preconditioners. None: `b2`.
      initial_eigenvalue: where the eigenvalues of "kl" start. None: at the root mean
        square of the first gradient, which makes the steps free of its scale.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.one_of(tuple(_STEPS), factors=factors)
    waits = factors in _FIRST_CALL_WAITS
    direction = partial(
        scale_by_soap,
        *(b1, b2, eps, precondition_interval, max_dim),
        one_sided=one_sided,
        basis_precision=basis_precision,
        factors=factors,
        shampoo_beta=shampoo_beta,
        initial_eigenvalue=initial_eigenvalue,
    )
    return matrix_optimizer(
        direction,
        learning_rate,
        options,
        adam=adam_from_second_call if waits else scale_by_adam,
        decay_start=int(waits),
    )
