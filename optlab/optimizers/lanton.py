"""LANTON: layerwise learning rates that shrink where the gradient noise is large.

For every layer, with the norm of its group, at step `t = 1, 2, ...`::

    B_t = b1 B_{t-1} + (1-b1) G_t ;  O_t = LMO(B_t), the steepest ascent of unit norm
    H_t = b2 H_{t-1} + (1-b2) |G_t - G_{t-1}|_*^2                          H_1 = 0
    alpha_t = alpha / sqrt(alpha^2 + H_t)
    W <- W (1 - lr wd) - lr (alpha_t / max over the group of alpha_t)^p O_t

The groups, their LMOs and norms stand in :mod:`optlab.matrices.norms`: spectral for
hidden matrices, signs for embeddings and heads, unit RMS for vectors. A layer is
one slice of a stack.

The authors released no code; this is written from the paper. What it leaves open is
an argument or a choice: the exponent `p` is 1/2, the ratio is computed as `((alpha^2 +
H_min) / (alpha^2 + H))^(p/2)`, no bias correction, and norms above 3e15 (in float32)
count as that. `noise="paired"` takes the gradient of another minibatch for `G_{t-1}`.

References:
  `Noise-adaptive layerwise learning rates <https://arxiv.org/abs/2510.14009>`_, 2025.
"""

from typing import Any, Literal, Unpack

import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import descend, partition
from optlab.matrices.buckets import Distribute
from optlab.matrices.norms import DualNorm
from optlab.optimizers.lmo import scale_by_lmo
from optlab.options import (
    DecayOptions,
    LayerOptions,
    Number,
    Rate,
    Roles,
    SpreadOptions,
    pick,
    takes,
)
from optlab.roles import as_rule, tree_groups
from optlab.wrappers.noise import noise_adaptive


def scale_by_lanton(
    b1: Number = 0.95,
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
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of LANTON: `noise_adaptive(scale_by_lmo(...))`.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the noise, in [0, 1).
      alpha, exponent, noise, noise_interval, dual_norm: of the adaptation, see
        :func:`optlab.noise_adaptive`.
      embedding_scale, ns_steps, ns_dtype: of the LMO and of the norm, see
        :func:`optlab.scale_by_lmo`.
      roles, mu_dtype, distribute, chunk_bytes: see :mod:`optlab.options`.

    Returns:
      The transform; its state is that of the noise around that of the momentum. With
      `noise="paired"` its `update` needs `other_grads`.

    Raises:
      ValueError: an argument is out of range, or `other_grads` is missing.
    """
    checks.static(noise_interval=noise_interval, ns_steps=ns_steps)
    shared: dict[str, Any] = {
        "embedding_scale": embedding_scale,
        "ns_steps": ns_steps,
        "ns_dtype": ns_dtype,
        "roles": roles,
        "distribute": distribute,
        "chunk_bytes": chunk_bytes,
    }
    return noise_adaptive(
        scale_by_lmo(b1, mu_dtype=mu_dtype, **shared),
        *(b2, alpha, exponent),
        noise=noise,
        noise_interval=noise_interval,
        dual_norm=dual_norm,
        **shared,
    )


@takes(LayerOptions)
def lanton(
    learning_rate: Rate,
    *,
    b1: Number = 0.95,
    b2: Number = 0.9,
    alpha: Number = 1.0,
    exponent: Number = 0.5,
    noise: Literal["consecutive", "paired"] = "consecutive",
    noise_interval: int = 1,
    dual_norm: DualNorm = "newton_schulz",
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    embedding_learning_rate: Rate = None,
    vector_learning_rate: Rate = None,
    embedding_scale: Number | None = 1.0,
    **options: Unpack[LayerOptions],
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
      ns_dtype: of their products. None: float32 on CPUs, bfloat16 on GPUs and TPUs,
        float64 for such momenta, see :mod:`optlab.matrices.precision`.
      embedding_learning_rate: of embeddings and heads. None: `learning_rate`.
      vector_learning_rate: of vectors. None: `learning_rate`.
      embedding_scale: of the sign of embeddings and heads. None: one over the width.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer. With `noise="paired"` its `update` needs `other_grads`.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.rate(
        learning_rate=learning_rate,
        embedding_learning_rate=embedding_learning_rate,
        vector_learning_rate=vector_learning_rate,
    )
    rule = as_rule(options.get("roles"))

    def group(rate):
        direction = scale_by_lanton(
            *(b1, b2, alpha, exponent),
            noise=noise,
            noise_interval=noise_interval,
            dual_norm=dual_norm,
            embedding_scale=embedding_scale,
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            **pick(SpreadOptions, options),
        )
        rate = learning_rate if rate is None else rate
        return descend(direction, rate, **pick(DecayOptions, options))

    def labels(params):
        return tree_groups(params, rule)

    return partition(
        {
            "matrix": group(learning_rate),
            "embedding": group(embedding_learning_rate),
            "vector": group(vector_learning_rate),
        },
        labels,
    )
