"""Steepest ascent of the momentum, the LMO of each group: LANTON's and Scion's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import cast_like, to_state_dtype, zero_state
from optlab.leaves import over_leaves
from optlab.matrices.buckets import Distribute
from optlab.matrices.norms import steepest_ascent, tree_layers
from optlab.options import Number, Roles
from optlab.roles import as_rule, tree_groups


class ScaleByLmoState(NamedTuple):
    """State of the momentum under an LMO."""

    count: jax.Array  # ()
    mu: optax.Updates  # B, as the parameters


def scale_by_lmo(
    b1: Number = 0.95,
    *,
    embedding_scale: Number | None = 1.0,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The steepest ascent of the momentum in each group's norm: LANTON's and Scion's.

    Args:
      b1: decay of the momentum, in [0, 1).
      embedding_scale: of the sign of embeddings and heads. None: one over the width,
        the last axis of a table, the first of a kernel or head.
      ns_steps: Newton-Schulz steps on hidden matrices.
      ns_dtype: of their products. None: float32 on CPUs, bfloat16 on GPUs and TPUs,
        float64 for such momenta, see :mod:`optlab.matrices.precision`.
      roles, mu_dtype, distribute, chunk_bytes: see :mod:`optlab.options`.

    Returns:
      The transform; its state holds one momentum.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.fraction(b1=b1)
    checks.newton_schulz_steps(ns_steps=ns_steps)
    if embedding_scale is not None:
        checks.non_negative(embedding_scale=embedding_scale)
    checks.dtype(ns_dtype=ns_dtype, mu_dtype=mu_dtype)
    checks.distribution(distribute, chunk_bytes)
    rule = as_rule(roles)

    def init_fn(params):
        tree_groups(params, rule)  # Says now what is doubtful, and to `describe` all.
        return ScaleByLmoState(jnp.zeros([], jnp.int32), zero_state(params, mu_dtype))

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        gradients = to_state_dtype(updates)
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradients, state.mu)
        leaves, treedef = jax.tree.flatten(mu)
        found = steepest_ascent(
            leaves,
            tree_layers(updates, rule, embedding_scale),
            over=jax.tree.leaves(gradients),
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            distribute=distribute,
            chunk_bytes=chunk_bytes,
        )
        directions = cast_like(treedef.unflatten(found), updates)
        return directions, ScaleByLmoState(state.count + 1, cast_like(mu, state.mu))

    return over_leaves(init_fn, update_fn, real="scale_by_lmo", distribute=distribute)
