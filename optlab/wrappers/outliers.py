"""ROOT's soft threshold: matrices clipped at a quantile of their absolute values."""

import jax
import jax.numpy as jnp
import optax

from optlab import checks
from optlab.compose import cast_like, to_state_dtype
from optlab.leaves import over_leaves
from optlab.matrices import quantiles
from optlab.matrices.buckets import Distribute, map_matrices
from optlab.options import Roles
from optlab.roles import Matrix, as_rule, tree_views


def clip_outliers(
    quantile: float = 0.9,
    *,
    roles: Roles = None,
    distribute: Distribute | None = None,
    chunk_bytes: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """ROOT's soft threshold alone: clips each hidden matrix at a quantile of itself.

    What is above the quantile of a matrix's absolute values comes down to it; other
    leaves pass through. Usable in any chain.

    Example:
      >>> import optax, optlab
      >>> tx = optax.chain(optlab.clip_outliers(0.9), optlab.cosmos(1e-2))

    Args:
      quantile: in (0, 1]; 1 clips nothing.
      roles, distribute, chunk_bytes: see :mod:`optlab.options`.

    Returns:
      The transform; it keeps nothing.

    Raises:
      ValueError: `quantile` is no plain number in (0, 1].
    """
    checks.share(quantile=quantile)
    checks.distribution(distribute, chunk_bytes)
    rule = as_rule(roles)

    def clip(updates, params=None):
        del params
        views = tree_views(updates, rule, "clip_outliers")
        (clipped,) = map_matrices(
            lambda x: (clip_to_quantile(x, quantile),),
            *(views, (to_state_dtype(updates),)),
            distribute=distribute,
            chunk_bytes=chunk_bytes,
            wide=True,
        )
        return cast_like(clipped, updates)

    def matrices(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: isinstance(rule(path, leaf), Matrix), tree
        )

    tx = optax.masked(optax.stateless(clip), matrices, mask_compatible_extra_args=True)
    return over_leaves(tx.init, tx.update, distribute=distribute)


def clip_to_quantile(x: jax.Array, quantile: float) -> jax.Array:
    """Clips each matrix of a stack at a quantile of its absolute values."""
    bound = quantiles.quantile(jnp.abs(x), quantile) + 1e-9
    return jnp.clip(x, -bound, bound)
