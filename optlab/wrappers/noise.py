"""Steps that shrink layer by layer where the gradient noise is large."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import checks
from optlab.compose import state_dtype, to_state_dtype, zero_state
from optlab.leaves import over_leaves
from optlab.matrices.buckets import Distribute
from optlab.matrices.norms import (
    DualNorm,
    Layers,
    check_dual_norm,
    dual_norms,
    tree_layers,
)
from optlab.roles import as_rule


class NoiseAdaptiveState(NamedTuple):
    """State of the noise; `noise` has a leaf's stack axes only, `()` for most."""

    count: jax.Array  # ()
    noise: optax.Updates  # H, one number a layer
    previous: optax.Updates  # G_{t-1}, as the parameters; () if paired
    inner: optax.OptState


def noise_adaptive(
    direction: optax.GradientTransformation,
    b2: Any = 0.9,
    alpha: Any = 1.0,
    exponent: Any = 0.5,
    *,
    noise: str = "consecutive",
    noise_interval: int = 1,
    dual_norm: DualNorm = "newton_schulz",
    embedding_scale: Any = 1.0,
    ns_steps: int = 5,
    ns_dtype: Any = None,
    roles: Any = None,
    distribute: Distribute | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales each layer of a direction down where the gradient noise is large.

    The layer of a group with the least noise keeps its step. The equations stand in
    :mod:`optlab.optimizers.lanton`.

    Example:
      >>> import optax, optlab
      >>> tx = optlab.noise_adaptive(optax.trace(0.95))

    Args:
      direction: what makes the steps: an LMO or any other transform.
      b2: decay of the noise, in [0, 1).
      alpha: noise level, in the units of the gradient's dual norm, where layers begin
        to slow down. At infinity none does.
      exponent: `p`, of the ratio of the `alpha_t`.
      noise: "consecutive" compares with the gradient of the call before, and keeps
        it; "paired" with `update`'s extra argument `other_grads`, the gradient of an
        independent minibatch at the same parameters.
      noise_interval: measure at every so many calls, from the first possible one.
      dual_norm: nuclear norm of hidden matrices: "newton_schulz", `<D, NS(D)>` (one
        more orthogonalization, which doubles the step; 0.87 to 0.95 of the norm at
        full rank, 0.7 at rank one), "lanczos" by a few products with vectors (2% of
        the step; 1.0 of the norm at full rank and at rank one, up to 1.25 between),
        "exact" by SVD, "frobenius" for the cheap lower bound, or a function of
        `(S, m, n)` to `(S,)`, applied to either of a matrix and its transpose.
      embedding_scale: see :func:`optlab.scale_by_lmo`.
      ns_steps, ns_dtype: of "newton_schulz".
      roles, distribute: see :func:`optlab.compose.matrix_optimizer`.

    Returns:
      The transform. Its state holds one number a layer and, if consecutive, one
      gradient, beside the state of `direction`.

    Raises:
      ValueError: an argument is out of range, or `other_grads` is missing.
    """
    checks.static(noise_interval=noise_interval, ns_steps=ns_steps)
    checks.fraction(b2=b2)
    checks.non_negative(exponent=exponent)
    if embedding_scale is not None:
        checks.non_negative(embedding_scale=embedding_scale)
    checks.positive_int(noise_interval=noise_interval)
    checks.newton_schulz_steps(ns_steps=ns_steps)
    checks.one_of(("consecutive", "paired"), noise=noise)
    checks.level(alpha=alpha)
    check_dual_norm(dual_norm)
    checks.dtype(ns_dtype=ns_dtype)
    checks.distribution(distribute)
    paired = noise == "paired"
    rule = as_rule(roles)
    inner = optax.with_extra_args_support(direction)

    def init_fn(params):
        leaves, treedef = jax.tree.flatten(params)
        zeros = [
            jnp.zeros(layer.stack, state_dtype(p))
            for p, layer in zip(
                leaves, tree_layers(params, rule, embedding_scale), strict=True
            )
        ]
        return NoiseAdaptiveState(
            count=jnp.zeros([], jnp.int32),
            noise=treedef.unflatten(zeros),
            previous=() if paired else zero_state(params),
            inner=inner.init(params),
        )

    def update_fn(updates, state, params=None, **extra):
        directions, inner_state = inner.update(updates, state.inner, params, **extra)
        layers = tree_layers(updates, rule, embedding_scale)
        gradients = to_state_dtype(updates)
        others = extra.get("other_grads") if paired else state.previous
        if others is None:
            raise ValueError("noise='paired': update needs the argument other_grads")
        noises, treedef = jax.tree.flatten(state.noise)

        def measured():
            differences = jax.tree.map(
                lambda g, o: g - o.astype(g.dtype), gradients, others
            )
            norms = dual_norms(
                jax.tree.leaves(differences),
                layers,
                dual_norm=dual_norm,
                ns_steps=ns_steps,
                ns_dtype=ns_dtype,
                distribute=distribute,
            )
            return [
                b2 * h + (1 - b2) * jnp.square(_capped(n))
                for h, n in zip(noises, norms, strict=True)
            ]

        # There is no previous gradient at the first call.
        since = state.count if paired else state.count - 1
        due = (since >= 0) & (since % noise_interval == 0)
        if noise_interval == 1:
            # Only the first call of all has nothing to measure: no branch for that.
            pairs = zip(measured(), noises, strict=True)
            noises = [jnp.where(due, fresh, h) for fresh, h in pairs]
        else:
            noises = lax.cond(due, measured, lambda: noises)
        leaves = [
            (d * jnp.expand_dims(ratio, layer.axes)).astype(d.dtype)
            for d, layer, ratio in zip(
                jax.tree.leaves(directions),
                *(layers, layer_ratios(noises, layers, alpha, exponent)),
                strict=True,
            )
        ]
        new_state = NoiseAdaptiveState(
            count=state.count + 1,
            noise=treedef.unflatten(noises),
            previous=() if paired else gradients,
            inner=inner_state,
        )
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), new_state

    return over_leaves(init_fn, update_fn, real="noise_adaptive", distribute=distribute)


def _capped(norm: jax.Array) -> jax.Array:
    """The norm, where its square is finite."""
    return jnp.minimum(norm, float(jnp.finfo(norm.dtype).max) ** 0.4)


def layer_ratios(
    noises: Sequence[jax.Array], layers: Sequence[Layers], alpha: Any, exponent: Any
) -> list[jax.Array]:
    """`(alpha_t / max alpha_t)^p`, without the quotient of two small numbers."""
    # One vector a group: chains of scalars would be fused into every leaf's update.
    ratios = list(noises)
    for group in dict.fromkeys(layer.group for layer in layers):
        members = [i for i, layer in enumerate(layers) if layer.group == group]
        h = jnp.concatenate([jnp.ravel(noises[i]) for i in members])
        square = jnp.square(jnp.asarray(alpha, h.dtype))
        finite = jnp.isfinite(square)
        level = jnp.where(finite, square, 1.0) + float(jnp.finfo(h.dtype).tiny)
        # A layer that is lost to NaN does not take its group along.
        least = jnp.min(jnp.where(jnp.isnan(h), jnp.inf, h))
        ratio = ((level + least) / (level + h)) ** (exponent / 2)
        ratio = jnp.where(finite, ratio, 1.0)
        ends = np.cumsum([noises[i].size for i in members])
        for i, part in zip(members, jnp.split(ratio, ends[:-1]), strict=True):
            ratios[i] = part.reshape(noises[i].shape)
    return ratios
