"""Muon: the momentum of a matrix, orthogonalized.

For a matrix `W` of shape `(d_in, d_out)` with gradient `G`, at step `t = 1, 2, ...`::

    M_t = mu M_{t-1} + (1 - mu) G
    X   = mu M_t / (1 - mu^(t+1)) + (1 - mu) G / (1 - mu^t)     Nesterov
    X   = M_t / (1 - mu^t)                                      without
    direction = s NS_K(X / (|X| + eps))

with `s = 0.2 sqrt(max(d_in, d_out))`, which gives every update an RMS of about 0.2
(Moonlight's choice), or with `s = sqrt(max(1, d_out / d_in))`, Jordan's, for
`consistent_rms=None`.

The numbers are those of `optax.contrib.muon` (0.2.8), float32 to 1e-6 and float64 to
1e-12, and this one works on whole matrices over a mesh. Deviations from it:

* roles decide which leaves are hidden matrices, and stacks are worked on slice by
  slice; optax's default takes every leaf of two axes and no other.
* by default the RMS of an update is 0.2, where optax has Jordan's scale.
* by default the other leaves get Adam with `adam_b2=0.95` and decay like the matrices.
  optax gives them NAdam (with Nesterov's momentum), b2 = 0.999 and no decay:
  `adam_nesterov=True, adam_b2=0.999, adam_weight_decay=0`.
* state has at least float32, and holds no coefficients.
* `normalize="schatten4"` is optax's preconditioning "schatten". There a matrix with a
  norm below 1e-4 stays smaller than one; here it does not.
* wide and tall matrices use the Gram form of Newton-Schulz where that is cheaper: the
  same polynomial, rounded otherwise.

References:
  Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
  Liu et al., `Muon is Scalable for LLM Training
  <https://arxiv.org/abs/2502.16982>`_, 2025.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
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
from optlab.matrices.buckets import Distribute, map_matrices
from optlab.matrices.coefficients.fit import NORMALIZATIONS
from optlab.matrices.coefficients.presets import (
    PRESETS,
    check_coefficients,
    fit_coefficients,
    resolve_coefficients,
)
from optlab.matrices.orthogonalize import Coefficients, orthogonalize
from optlab.options import (
    MuonOptions,
    NewtonSchulzOptions,
    Number,
    Rate,
    Roles,
    pick,
    takes,
)
from optlab.roles import View, as_rule, tree_views


class ScaleByMuonState(NamedTuple):
    """State of Muon."""

    count: jax.Array  # ()
    mu: optax.Updates  # M, as the parameters


def _orthogonal(
    x: jax.Array,
    *,
    eps: Any,
    ns_steps: int,
    ns_coeffs: Coefficients | None,
    normalize: Any,
    ns_dtype: DTypeLike | None,
) -> tuple[jax.Array]:
    """A stack `(S, m, n)` of momenta, orthogonalized; None fits the coefficients."""
    if ns_coeffs is None:
        m, n = x.shape[-2:]
        ns_coeffs = fit_coefficients(
            (m, n), ns_steps, per_step=True, normalize=normalize
        )
    return (
        orthogonalize(
            x,
            steps=ns_steps,
            coeffs=ns_coeffs,
            normalize=normalize,
            eps=eps,
            dtype=ns_dtype,
        ),
    )


def _scale(view: View, consistent_rms: Any) -> Any:
    """What an orthogonal matrix `(d_in, d_out)` is multiplied by."""
    if consistent_rms is None:
        return math.sqrt(max(1.0, view.n / view.m))
    return consistent_rms * math.sqrt(max(view.m, view.n))


def scale_by_muon(
    momentum: Number = 0.95,
    *,
    nesterov: bool = True,
    eps: Number = 1e-8,
    ns_steps: int = 5,
    ns_coeffs: Coefficients = "muon",
    normalize: Literal["frobenius", "schatten4"] = "frobenius",
    ns_dtype: DTypeLike | None = None,
    consistent_rms: float | None = 0.2,
    average: Literal["unbiased", "plain", "sum"] = "unbiased",
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Muon, for trees of hidden matrices only.

    See :func:`optlab.muon` for the other arguments.

    Args:
      average: what the momentum is. "unbiased": an average with corrections of its
        bias, as in the equations. "plain": `M = mu M + (1 - mu) G` and
        `X = mu M + (1 - mu) G`, NorMuon's. "sum": `M = mu M + G` and `X = mu M + G`,
        Jordan's. The last two differ by what `eps` is compared with.

    Raises:
      ValueError: an argument is out of range, or a leaf is no matrix.
    """
    checks.fraction(momentum=momentum)
    checks.non_negative(eps=eps)
    checks.newton_schulz_steps(ns_steps=ns_steps)
    checks.boolean(nesterov=nesterov)
    checks.static(ns_steps=ns_steps)
    checks.dtype(ns_dtype=ns_dtype, mu_dtype=mu_dtype)
    checks.distribution(distribute, chunk_bytes)
    checks.one_of(tuple(NORMALIZATIONS), normalize=normalize)
    checks.one_of(("unbiased", "plain", "sum"), average=average)
    if consistent_rms is not None:
        checks.positive(consistent_rms=consistent_rms)
    if isinstance(ns_coeffs, str):
        checks.one_of((*PRESETS, "fitted"), ns_coeffs=ns_coeffs)
    fitted = isinstance(ns_coeffs, str) and ns_coeffs == "fitted"
    if not fitted:
        check_coefficients(ns_coeffs, ns_steps)
    rule = as_rule(roles)
    step = partial(
        _orthogonal,
        eps=eps,
        ns_steps=ns_steps,
        ns_coeffs=None if fitted else resolve_coefficients(ns_coeffs, ns_steps),
        normalize=normalize,
        ns_dtype=ns_dtype,
    )

    def init_fn(params):
        tree_views(params, rule, "muon")
        return ScaleByMuonState(jnp.zeros([], jnp.int32), zero_state(params, mu_dtype))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        t = state.count + 1
        gradients = to_state_dtype(updates)
        weight = 1 if average == "sum" else 1 - momentum
        mu = jax.tree.map(lambda g, m: momentum * m + weight * g, gradients, state.mu)

        def hat(x, t):
            if average != "unbiased":
                return x
            return x / bias_correction(momentum, t, x.dtype)

        def looked_ahead(g, m):
            if not nesterov:
                return (hat(m, t),)
            return (momentum * hat(m, t + 1) + weight * hat(g, t),)

        views = tree_views(updates, rule, "muon")
        (orthogonal,) = map_matrices(
            step,
            views,
            (gradients, mu),
            made=looked_ahead,
            distribute=distribute,
            chunk_bytes=chunk_bytes,
            wide=True,
        )
        directions = jax.tree.map(
            lambda o, view: _scale(view, consistent_rms) * o, orthogonal, views
        )
        state = ScaleByMuonState(t, cast_like(mu, state.mu))
        return cast_like(directions, updates), state

    return over_leaves(init_fn, update_fn, real="muon", distribute=distribute)


@takes(MuonOptions)
def muon(
    learning_rate: Rate,
    *,
    momentum: Number = 0.95,
    eps: Number = 1e-8,
    consistent_rms: float | None = 0.2,
    adam_nesterov: bool = False,
    **options: Unpack[MuonOptions],
) -> optax.GradientTransformationExtraArgs:
    """Muon on the hidden matrices, AdamW on embeddings, heads and vectors.

    The equations and the deviations from `optax.contrib.muon` stand in
    :mod:`optlab.optimizers.muon`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.muon(2e-2, weight_decay=0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of the hidden matrices, a number or a schedule.
      momentum: decay of the momentum, in [0, 1).
      eps: added to the matrix's norm.
      consistent_rms: RMS of an update at rate one, whatever the shape. None: the scale
        is `sqrt(max(1, d_out / d_in))`.
      adam_nesterov: whether the other leaves get NAdam instead of Adam.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.boolean(adam_nesterov=adam_nesterov)
    direction = partial(
        scale_by_muon,
        momentum,
        eps=eps,
        consistent_rms=consistent_rms,
        **pick(NewtonSchulzOptions, options),
    )
    return matrix_optimizer(
        direction,
        learning_rate,
        options,
        adam=partial(scale_by_adam, nesterov=adam_nesterov),
    )
