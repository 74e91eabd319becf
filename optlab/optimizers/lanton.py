"""LANTON: layerwise learning rates that shrink where the gradient noise is large.

For every layer, with the norm of its group, at step `t = 1, 2, ...`::

    B_t = b1 B_{t-1} + (1-b1) G_t ;  O_t = LMO(B_t), the steepest ascent of unit norm
    H_t = b2 H_{t-1} + (1-b2) |G_t - G_{t-1}|_*^2                          H_1 = 0
    alpha_t = alpha / sqrt(alpha^2 + H_t)
    W <- W (1 - lr wd) - lr (alpha_t / max over the group of alpha_t)^p O_t

The groups, their LMOs and norms stand in :mod:`optlab.norms`: spectral for hidden
matrices, signs for embeddings and heads, unit RMS for vectors. A layer is one slice of
a stack.

The authors released no code; this is written from the paper. What it leaves open is
an argument or a choice: the exponent `p` is 1/2, the ratio is computed as `((alpha^2 +
H_min) / (alpha^2 + H))^(p/2)`, no bias correction, and norms above 3e15 (in float32)
count as that. `noise="paired"` takes the gradient of another minibatch for `G_{t-1}`.

References:
  `Noise-adaptive layerwise learning rates <https://arxiv.org/abs/2510.14009>`_, 2025.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import checks
from optlab.compose import (
    cast_like,
    descend,
    state_dtype,
    to_state_dtype,
    zero_state,
)
from optlab.norms import (
    DualNorm,
    Layers,
    check_dual_norm,
    dual_norms,
    steepest_ascent,
    tree_layers,
)
from optlab.roles import Distribute, Matrix, as_rule, tree_roles


class ScaleByLmoState(NamedTuple):
    """State of the momentum under an LMO."""

    count: jax.Array  # ()
    mu: optax.Updates  # B, as the parameters


class NoiseAdaptiveState(NamedTuple):
    """State of the noise; `noise` has a leaf's stack axes only, `()` for most."""

    count: jax.Array  # ()
    noise: optax.Updates  # H, one number a layer
    previous: optax.Updates  # G_{t-1}, as the parameters; () if paired
    inner: optax.OptState


def scale_by_lmo(
    b1: Any = 0.95,
    *,
    embedding_scale: Any = 1.0,
    ns_steps: int = 5,
    ns_dtype: Any = None,
    roles: Any = None,
    mu_dtype: Any = None,
    distribute: Distribute | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The steepest ascent of the momentum in each group's norm: LANTON's and Scion's.

    Args:
      b1: decay of the momentum, in [0, 1).
      embedding_scale: of the sign of embeddings and heads. None: one over the width,
        the last axis of a table, the first of a kernel or head.
      ns_steps: Newton-Schulz steps on hidden matrices.
      ns_dtype: of their products, such as bfloat16 where that is faster. None: the
        momentum's, and at least float32.
      roles, mu_dtype, distribute: see :func:`optlab.compose.matrix_optimizer`.

    Returns:
      The transform; its state holds one momentum.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.fraction(b1=b1)
    checks.positive_int(ns_steps=ns_steps)
    checks.non_negative(embedding_scale=embedding_scale)
    rule = as_rule(roles)

    def init_fn(params):
        return ScaleByLmoState(jnp.zeros([], jnp.int32), zero_state(params, mu_dtype))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        gradients = to_state_dtype(updates)
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradients, state.mu)
        leaves, treedef = jax.tree.flatten(mu)
        found = steepest_ascent(
            leaves,
            tree_layers(updates, rule, embedding_scale),
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            distribute=distribute,
        )
        directions = cast_like(treedef.unflatten(found), updates)
        return directions, ScaleByLmoState(state.count + 1, cast_like(mu, state.mu))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
    checks.fraction(b2=b2)
    checks.non_negative(exponent=exponent, embedding_scale=embedding_scale)
    checks.positive_int(noise_interval=noise_interval, ns_steps=ns_steps)
    checks.one_of(("consecutive", "paired"), noise=noise)
    if isinstance(alpha, int | float) and not alpha > 0:
        raise ValueError(f"alpha must be > 0, got {alpha!r}")
    check_dual_norm(dual_norm)
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

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
        ratio = ((level + jnp.min(h)) / (level + h)) ** (exponent / 2)
        ratio = jnp.where(finite, ratio, 1.0)
        ends = np.cumsum([noises[i].size for i in members])
        for i, part in zip(members, jnp.split(ratio, ends[:-1]), strict=True):
            ratios[i] = part.reshape(noises[i].shape)
    return ratios


def lanton(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Any = 0.95,
    b2: Any = 0.9,
    alpha: Any = 1.0,
    exponent: Any = 0.5,
    noise: str = "consecutive",
    noise_interval: int = 1,
    dual_norm: DualNorm = "newton_schulz",
    ns_steps: int = 5,
    ns_dtype: Any = None,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    embedding_learning_rate: optax.ScalarOrSchedule | None = None,
    vector_learning_rate: optax.ScalarOrSchedule | None = None,
    embedding_scale: Any = 1.0,
    roles: Any = None,
    mu_dtype: Any = None,
    distribute: Distribute | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LANTON: an LMO step for every group, with noise-adaptive layerwise rates.

    The equations, the groups and what the paper leaves open stand in
    :mod:`optlab.optimizers.lanton`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.lanton(2e-2, vector_learning_rate=1e-3, weight_decay=0.1)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of the hidden matrices, a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the noise, in [0, 1).
      alpha, exponent, noise, noise_interval, dual_norm: of the adaptation, see
        :func:`optlab.noise_adaptive`.
      ns_steps: Newton-Schulz steps, of the direction and of the norm.
      ns_dtype: of their products, such as bfloat16 where that is faster. None: the
        momentum's, and at least float32.
      embedding_learning_rate: of embeddings and heads. None: `learning_rate`.
      vector_learning_rate: of vectors. None: `learning_rate`.
      embedding_scale: of the sign of embeddings and heads. None: one over the width.
      weight_decay, weight_decay_mask, roles, mu_dtype, distribute: as every matrix
        method takes them, see :func:`optlab.compose.matrix_optimizer`.

    Returns:
      The optimizer. With `noise="paired"` its `update` needs `other_grads`.

    Raises:
      ValueError: an argument is out of range.
    """
    rule = as_rule(roles)

    def group(rate):
        lmo = scale_by_lmo(
            b1,
            embedding_scale=embedding_scale,
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            roles=roles,
            mu_dtype=mu_dtype,
            distribute=distribute,
        )
        adapted = noise_adaptive(
            *(lmo, b2, alpha, exponent),
            noise=noise,
            noise_interval=noise_interval,
            dual_norm=dual_norm,
            embedding_scale=embedding_scale,
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            roles=roles,
            distribute=distribute,
        )
        rate = learning_rate if rate is None else rate
        return descend(adapted, rate, weight_decay, weight_decay_mask)

    def labels(params):
        return jax.tree.map(
            lambda role: "matrix" if isinstance(role, Matrix) else role.value,
            tree_roles(params, rule),
            is_leaf=lambda x: isinstance(x, Matrix),
        )

    return optax.partition(
        {
            "matrix": group(learning_rate),
            "embedding": group(embedding_learning_rate),
            "vector": group(vector_learning_rate),
        },
        labels,
        mask_compatible_extra_args=True,
    )
