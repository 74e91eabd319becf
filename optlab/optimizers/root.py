"""ROOT: Muon on what is left of the momentum once its outliers are cut off.

For a matrix `W` of shape `(d_in, d_out)` with gradient `G`::

    M_t = mu M_{t-1} + G
    X   = G + mu M_t                          Nesterov; X = M_t without
    e_t = quantile(|X|, q) + 1e-9             a number for each matrix and step
    B   = X - sign(X) max(|X| - e_t, 0)       which is clip(X, -e_t, e_t)
    direction = 0.2 sqrt(max(d_in, d_out)) NS_K(B)

with coefficients fitted to the matrix's shape.

Held against the authors' code, huawei-noah/noah-research, folder ROOT, at commit
aa0f80c, with its coefficients given. Deviations:

* the authors published one triple for each of four shapes and not how they fitted them,
  and fall back on Muon's for any other; here every shape is fitted, by the recipe of
  :func:`optlab.fit_coefficients`, one triple a step, and `B` is divided by its Schatten
  norm of order four, where the authors' code takes Frobenius'. For the same FLOPs the
  mean squared error of the singular values, on the fit's spectra, is 0.0020 at 768 x
  768 and 4e-8 at 768 x 2048; one triple for all steps over Frobenius' norm leaves 0.022
  and 0.003, Muon's 0.039 and 0.030. `ns_steps=4` leaves 0.0072 and 0.001 for a fifth
  less. Given `ns_coeffs` work as the authors' do, over Frobenius' norm.
* AdamW's `eps` stands beside the corrected root in the other leaves, as in optax; in
  the authors' code it stands beside the root before its correction.
* gradients with a norm above 3e15 (in float32) are scaled down to it.

References:
  He et al., `ROOT: Robust Orthogonalized Optimizer for Neural Network Training
  <https://arxiv.org/abs/2511.20626>`_, 2025.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import cast_like, matrix_optimizer, to_state_dtype, zero_state
from optlab.leaves import over_leaves
from optlab.matrices import linalg, quantiles
from optlab.matrices.buckets import Distribute, map_matrices
from optlab.matrices.coefficients.presets import (
    check_coefficients,
    fit_coefficients,
)
from optlab.matrices.orthogonalize import Coefficients, orthogonalize
from optlab.options import MatrixOptions, Number, Rate, Roles, takes
from optlab.roles import as_rule, tree_views
from optlab.state import Observed
from optlab.wrappers.outliers import clip_to_quantile

# The RMS of an update is about this, whatever the shape (Moonlight's choice).
_RMS = 0.2

ShapeCoefficients = Coefficients | Mapping[tuple[int, int], Sequence] | None


class ScaleByRootState(NamedTuple):
    """State of ROOT."""

    count: jax.Array  # ()
    mu: optax.Updates  # M, as the parameters


def _directions(
    x: jax.Array,
    *,
    quantile: float,
    ns_steps: int,
    ns_coeffs: ShapeCoefficients,
    ns_dtype: DTypeLike | None,
) -> tuple[jax.Array]:
    """The directions of a stack `(S, m, n)` of momenta."""
    clipped = clip_to_quantile(linalg.cap_norm(x), quantile)
    normalize = "schatten4" if ns_coeffs is None else "frobenius"
    ortho = orthogonalize(
        clipped,
        steps=ns_steps,
        coeffs=_coefficients(ns_coeffs, x.shape[-2:], ns_steps, normalize),
        normalize=normalize,
        dtype=ns_dtype,
    )
    return (_RMS * math.sqrt(max(x.shape[-2:])) * ortho,)


def _coefficients(
    ns_coeffs: ShapeCoefficients, shape: tuple[int, ...], steps: int, normalize: str
) -> Coefficients:
    m, n = shape
    if ns_coeffs is None:
        return fit_coefficients((m, n), steps, per_step=True, normalize=normalize)
    if not isinstance(ns_coeffs, Mapping):
        return ns_coeffs
    for key in ((m, n), (n, m)):
        if key in ns_coeffs:
            return ns_coeffs[key]
    raise ValueError(f"ns_coeffs has no entry for matrices of shape {(m, n)}")


def _check_coefficients(ns_coeffs: ShapeCoefficients, steps: int) -> None:
    if ns_coeffs is None:
        return
    given = ns_coeffs.values() if isinstance(ns_coeffs, Mapping) else [ns_coeffs]
    if not given:
        raise ValueError("ns_coeffs must have a shape, got an empty dictionary")
    for coeffs in given:
        check_coefficients(coeffs, steps)


def scale_by_root(
    momentum: Number = 0.95,
    *,
    nesterov: bool = True,
    quantile: float = 0.9,
    ns_steps: int = 5,
    ns_coeffs: ShapeCoefficients = None,
    ns_dtype: DTypeLike | None = None,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of ROOT, of RMS about 0.2, for trees of hidden matrices only.

    See :func:`optlab.root` for the arguments.

    Raises:
      ValueError: an argument is out of range, or a leaf is no matrix.
    """
    checks.static(quantile=quantile, ns_steps=ns_steps)
    checks.fraction(momentum=momentum)
    checks.newton_schulz_steps(ns_steps=ns_steps)
    checks.share(quantile=quantile)
    checks.boolean(nesterov=nesterov)
    checks.dtype(ns_dtype=ns_dtype, mu_dtype=mu_dtype)
    checks.distribution(distribute, chunk_bytes)
    _check_coefficients(ns_coeffs, ns_steps)
    rule = as_rule(roles)
    step = partial(
        _directions,
        quantile=quantile,
        ns_steps=ns_steps,
        ns_coeffs=ns_coeffs,
        ns_dtype=ns_dtype,
    )

    def init_fn(params):
        tree_views(params, rule, "root")
        return ScaleByRootState(jnp.zeros([], jnp.int32), zero_state(params, mu_dtype))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        gradients = to_state_dtype(updates)
        mu = jax.tree.map(lambda g, m: momentum * m + g, gradients, state.mu)
        (directions,) = map_matrices(
            step,
            tree_views(updates, rule, "root"),
            (gradients, mu),
            made=lambda g, m: (g + momentum * m if nesterov else m,),
            distribute=distribute,
            chunk_bytes=chunk_bytes,
            wide=True,
        )
        state = ScaleByRootState(state.count + 1, cast_like(mu, state.mu))
        return cast_like(directions, updates), state

    return over_leaves(init_fn, update_fn, real="root", distribute=distribute)


def diagnose(seen: Observed) -> dict[str, Any]:
    """The share of the momentum's energy that is above the threshold."""

    def share(x, view):
        matrices = view.matrices(x)
        x = jnp.abs(matrices.mT if view.m > view.n else matrices)
        x = x / jnp.maximum(jnp.max(x, (-2, -1), keepdims=True), 1e-30)
        bound = quantiles.quantile(x, seen.arguments.get("quantile", 0.9))
        over = jnp.sum(jnp.square(x) - jnp.square(jnp.minimum(x, bound)), (-2, -1))
        total = jnp.maximum(jnp.sum(jnp.square(x), (-2, -1)), 1e-30)
        return (over / total).reshape(view.stack)

    momentum = to_state_dtype(seen.after.mu)
    views = tree_views(momentum, seen.rule, "root")
    return {"layer_clipped": jax.tree.map(share, momentum, views)}


@takes(MatrixOptions)
def root(
    learning_rate: Rate,
    *,
    momentum: Number = 0.95,
    nesterov: bool = True,
    quantile: float = 0.9,
    ns_steps: int = 5,
    ns_coeffs: ShapeCoefficients = None,
    ns_dtype: DTypeLike | None = None,
    **options: Unpack[MatrixOptions],
) -> optax.GradientTransformationExtraArgs:
    """ROOT on the hidden matrices, AdamW on embeddings, heads and vectors.

    The equations and the deviations from the authors' code stand in
    :mod:`optlab.optimizers.root`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.root(2e-2, weight_decay=0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of the hidden matrices, a number or a schedule.
      momentum: decay of the momentum, in [0, 1).
      nesterov: whether the momentum looks one gradient ahead.
      quantile: of the absolute values, above which they are clipped; in (0, 1].
      ns_steps: Newton-Schulz steps.
      ns_coeffs: a triple or `ns_steps` of them for all matrices, or a dictionary by
        shape `(m, n)`, either way round. None: fitted to each shape when traced, a
        triple for each step.
      ns_dtype: of the Newton-Schulz products. None: float32 on CPUs, bfloat16 on GPUs
        and TPUs, float64 for such momenta, see :mod:`optlab.matrices.precision`.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    direction = partial(
        scale_by_root,
        momentum,
        nesterov=nesterov,
        quantile=quantile,
        ns_steps=ns_steps,
        ns_coeffs=ns_coeffs,
        ns_dtype=ns_dtype,
    )
    return matrix_optimizer(direction, learning_rate, options)
