"""Steps that shrink layer by layer where the gradient noise is large."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

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
from optlab.options import Number, Roles
from optlab.roles import as_rule
from optlab.state import Observed


class NoiseAdaptiveState(NamedTuple):
    """State of the noise; `noise` has a leaf's stack axes only, `()` for most."""

    count: jax.Array  # ()
    noise: optax.Updates  # H, one number a layer
    previous: optax.Updates  # G_{t-1}, as the parameters; () if paired
    inner: optax.OptState


def noise_adaptive(
    direction: optax.GradientTransformation,
    b2: Number = 0.9,
    alpha: Number = 1.0,
    exponent: Number = 0.5,
    *,
    noise: Literal["consecutive", "paired"] = "consecutive",
    noise_interval: int = 1,
    dual_norm: DualNorm = "newton_schulz",
    embedding_scale: Number | None = 1.0,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    roles: Roles = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales each layer of a direction down where the gradient noise is large.

    The layer of a group with the least noise keeps its step. The equations stand in
    :mod:`optlab.optimizers.lanton`.

    Example:
      >>> import optax, optlab
      >>> tx = optlab.noise_adaptive(optax.trace(0.95))

    Args:
      direction: what makes the steps: an LMO or any other transform. Only their
        lengths change, so that what descends still does.
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
        the step's FLOPs; 1.0 of the norm at full rank and at rank one, 0.9 to 1.2
        between),
        "exact" by SVD, "frobenius" for the cheap lower bound, or a function of
        `(S, m, n)` to `(S,)`, applied to either of a matrix and its transpose.
      embedding_scale: see :func:`optlab.scale_by_lmo`.
      ns_steps, ns_dtype: of "newton_schulz".
      roles, distribute, chunk_bytes: see :mod:`optlab.options`.

    Returns:
      The transform. Its state holds one number a layer and, if consecutive, one
      gradient, beside the state of `direction`.

    Raises:
      ValueError: an argument is out of range, `direction` is no transform, or
        `other_grads` is missing.
    """
    checks.transform(direction=direction)
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
    checks.distribution(distribute, chunk_bytes)
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
        layers = tree_layers(updates, rule, embedding_scale)
        gradients, treedef = jax.tree.flatten(to_state_dtype(updates))
        others = extra.get("other_grads") if paired else state.previous
        if others is None:
            raise ValueError("noise='paired': update needs the argument other_grads")
        others = treedef.flatten_up_to(others)
        noises = treedef.flatten_up_to(state.noise)

        # There is no previous gradient at the first call.
        since = state.count if paired else state.count - 1
        due = (since >= 0) & (since % noise_interval == 0)

        def measured(due=None):
            norms, same = dual_norms(
                *(gradients, others, layers),
                dual_norm=dual_norm,
                ns_steps=ns_steps,
                ns_dtype=ns_dtype,
                distribute=distribute,
                chunk_bytes=chunk_bytes,
                due=due,
                keep=not paired,
            )
            return [
                b2 * h + (1 - b2) * jnp.square(_capped(n))
                for h, n in zip(noises, norms, strict=True)
            ], same

        if distribute is not None and noise_interval > 1:
            # Nothing is moved either where nothing is measured.
            noises, previous = lax.cond(due, measured, lambda: (noises, gradients))
        else:
            # Only the first call of all has nothing to measure: no branch for that.
            fresh, previous = measured(due if noise_interval > 1 else None)
            noises = [jnp.where(due, f, h) for f, h in zip(fresh, noises, strict=True)]
        if not paired and distribute is None:
            after = map(_after, treedef.flatten_up_to(updates), noises)
            updates = treedef.unflatten(after)
        directions, inner_state = inner.update(updates, state.inner, params, **extra)
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
            previous=() if paired else treedef.unflatten(previous),
            inner=inner_state,
        )
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), new_state

    return over_leaves(init_fn, update_fn, real="noise_adaptive", distribute=distribute)


def _after(gradient: jax.Array, noise: jax.Array) -> jax.Array:
    """The gradient, as a value that is there only once its noise has been measured.

    So the direction may be written over it: XLA copies what two loops use, if neither
    has to wait for the other, and drops `lax.optimization_barrier` before it looks. A
    noise is never negative, which XLA does not know. One entry is enough, and written
    in its place.
    """
    if not noise.size:
        return gradient
    start = (0,) * gradient.ndim
    entry = lax.slice(gradient, start, (1,) * gradient.ndim)
    entry = jnp.where(jnp.ravel(noise)[0] < 0, jnp.zeros_like(entry), entry)
    return lax.dynamic_update_slice(gradient, entry, start)


def _capped(norm: jax.Array) -> jax.Array:
    """The norm, where its square is finite."""
    return jnp.minimum(norm, float(jnp.finfo(norm.dtype).max) ** 0.4)


def diagnose(seen: Observed) -> dict[str, Any]:
    """The share of its rate that each layer gets, for a direction with a momentum."""
    like = getattr(seen.after.inner, "mu", None)
    if like is None:
        return {}
    given = seen.arguments
    layers = tree_layers(like, seen.rule, given.get("embedding_scale", 1.0))
    alpha, exponent = given.get("alpha", 1.0), given.get("exponent", 0.5)
    noises, treedef = jax.tree.leaves(seen.after.noise), jax.tree.structure(like)
    ratios = layer_ratios(noises, layers, alpha, exponent)
    return {"layer_rate": treedef.unflatten(ratios)}


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
