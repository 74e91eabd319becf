"""Scion: steps to the vertices of norm balls, by the role of each leaf.

With the LMOs of :mod:`optlab.matrices.norms` and a radius `rho` for each group::

    B_t = b1 B_{t-1} + (1-b1) G_t
    W <- (1 - lr) W - lr rho LMO(B_t)          constrained: |W| <= rho stays true
    W <- W - lr rho LMO(B_t)                   unconstrained

=========================  ===========================  ================
group                      LMO(B)                       rho
=========================  ===========================  ================
hidden matrices            sqrt(d_out/d_in) NS_5(B)     hidden_radius
convolutions, d_in inputs  sqrt(d_out/d_in)/k^2 NS_5    hidden_radius
embeddings, heads          sign(B) / width              embedding_radius
vectors                    sqrt(d) B / |B|_2            vector_radius
=========================  ===========================  ================

Held against the authors' code, LIONS-EPFL/scion at commit f58a393, with these
deviations: the groups come from the roles, their `momentum` is `1 - b1`, Newton-Schulz
runs in the state's precision instead of bfloat16, and vectors have no eps (the authors'
code adds 1e-8 to their RMS): they step by their radius however small they are, and by
nothing at 0.

References:
  Pethick et al., `Training Deep Learning Models with Norm-Constrained LMOs
  <https://arxiv.org/abs/2502.07529>`_, 2025.
"""

from typing import Unpack

import jax
import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import descend
from optlab.matrices.buckets import Distribute
from optlab.optimizers.lmo import scale_by_lmo
from optlab.options import Number, Rate, Roles, SpreadOptions, takes
from optlab.roles import Embedding, Matrix, as_rule, tree_roles


def scale_by_scion(
    b1: Number = 0.9,
    *,
    hidden_radius: Number = 50.0,
    embedding_radius: Number = 3000.0,
    vector_radius: Number = 1.0,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Scion, `rho LMO(B)`; the arguments are :func:`optlab.scion`'s.

    Returns:
      The transform; its state holds one momentum.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.non_negative(
        hidden_radius=hidden_radius,
        embedding_radius=embedding_radius,
        vector_radius=vector_radius,
    )
    checks.static(ns_steps=ns_steps)
    rule = as_rule(roles)

    def radius(role):
        if isinstance(role, Matrix):
            return hidden_radius
        return embedding_radius if isinstance(role, Embedding) else vector_radius

    def to_radius(updates, params=None):
        del params
        roles = tree_roles(updates, rule)
        return jax.tree.map(lambda u, role: radius(role) * u, updates, roles)

    lmo = scale_by_lmo(
        b1,
        embedding_scale=None,
        ns_steps=ns_steps,
        ns_dtype=ns_dtype,
        roles=roles,
        mu_dtype=mu_dtype,
        distribute=distribute,
        chunk_bytes=chunk_bytes,
    )
    return optax.chain(lmo, optax.stateless(to_radius))


@takes(SpreadOptions)
def scion(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    constrained: bool = True,
    hidden_radius: Number = 50.0,
    embedding_radius: Number = 3000.0,
    vector_radius: Number = 1.0,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    **options: Unpack[SpreadOptions],
) -> optax.GradientTransformationExtraArgs:
    """Scion on every leaf, with the norm of its role.

    Its rates are small beside the radii: the authors train nanoGPT at 3.6e-4 with
    radius 3000. The equations stand in :mod:`optlab.optimizers.scion`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.scion(3.6e-4)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of every leaf, a number or a schedule; below one if constrained.
      b1: decay of the momentum, in [0, 1).
      constrained: whether the parameters shrink by `1 - learning_rate` a step, which
        keeps them in the ball of their radius. It is the method's weight decay, of
        every leaf.
      hidden_radius: `rho` of the hidden matrices.
      embedding_radius: `rho` of embeddings and heads, over their width.
      vector_radius: `rho` of vectors: their largest RMS.
      ns_steps: Newton-Schulz steps on hidden matrices.
      ns_dtype: of their products. None: float32 on CPUs, bfloat16 on GPUs and TPUs,
        float64 for such momenta, see :mod:`optlab.matrices.precision`.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.boolean(constrained=constrained)
    direction = scale_by_scion(
        b1,
        hidden_radius=hidden_radius,
        embedding_radius=embedding_radius,
        vector_radius=vector_radius,
        ns_steps=ns_steps,
        ns_dtype=ns_dtype,
        **options,
    )
    return descend(direction, learning_rate, 1.0 if constrained else 0.0)
