"""NorMuon's second moment: every neuron of a matrix steps by the same length."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import checks
from optlab.compose import cast_like, state_dtype, to_state_dtype
from optlab.leaves import over_leaves
from optlab.matrices.linalg import frobenius_norm, safe_sqrt
from optlab.options import Number, Roles
from optlab.roles import Matrix, View, as_rule


class NormalizeNeuronsState(NamedTuple):
    """State of the neurons' second moment."""

    count: jax.Array  # ()
    nu: optax.Updates  # v, as the leaf, with one entry along the axes of its mean


def normalize_neurons(
    b2: Number = 0.95,
    *,
    eps: Number = 1e-10,
    axis: Literal["output", "longer"] = "output",
    roles: Roles = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides each neuron of a direction by its running size, and keeps the norm.

    For the direction `O` of a matrix `(d_in, d_out)`, with a mean over `d_in`::

        v = b2 v + (1-b2) mean O^2        one number an output neuron, from 0
        H = O / (sqrt(v) + eps)
        direction = H |O|_F / (|H|_F + eps)

    Other leaves pass through. It follows any method in a chain::

        optax.chain(optlab.directions.cosmos(), optlab.normalize_neurons())

    A polar factor with `d_out <= d_in` has columns of one length, and "output" changes
    nothing there but the errors of Newton-Schulz.

    Args:
      b2: decay of the second moment, in [0, 1).
      eps: added to its root, and to the norm.
      axis: "output": a number for each output, NorMuon's own. "longer": one for each
        place along the longer side (outputs, if the sides are equal), as in
        modded-nanogpt.
      roles: see :mod:`optlab.options`.

    Returns:
      The transform; its state is one number a neuron.

    Raises:
      ValueError: an argument is out of range.

    References:
      Li et al., `NorMuon <https://arxiv.org/abs/2510.05491>`_, 2025.
    """
    checks.fraction(b2=b2)
    checks.non_negative(eps=eps)
    checks.one_of(("output", "longer"), axis=axis)
    rule = as_rule(roles)

    def sides(path: Any, leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes of the mean, and all axes of one matrix."""
        role = rule(path, leaf)
        assert isinstance(role, Matrix)
        view = View.of(role, leaf.shape)
        by_input = axis == "longer" and view.m > view.n
        return (role.cols if by_input else role.rows), role.rows + role.cols

    def init_fn(params):
        def zeros(path, p):
            mean, _ = sides(path, p)
            shape = [1 if a in mean else n for a, n in enumerate(p.shape)]
            return jnp.zeros(shape, state_dtype(p))

        nu = jax.tree_util.tree_map_with_path(zeros, params)
        return NormalizeNeuronsState(jnp.zeros([], jnp.int32), nu)

    def update_fn(updates, state, params=None, **extra):
        del params, extra

        def second(path, o, v):
            mean, _ = sides(path, o)
            # The square of what is larger would stay infinite for ever.
            o = jnp.minimum(jnp.abs(o), float(jnp.finfo(o.dtype).max) ** 0.4)
            new = b2 * v + (1 - b2) * jnp.mean(jnp.square(o), mean, keepdims=True)
            return new.astype(v.dtype)

        def normalized(path, o, v):
            _, every = sides(path, o)
            h = o / (safe_sqrt(v) + eps)
            norms = (frobenius_norm(x, every, keepdims=True) for x in (o, h))
            before, after = norms
            return h * (before / (after + eps))

        directions = to_state_dtype(updates)
        nu = jax.tree_util.tree_map_with_path(second, directions, state.nu)
        new = jax.tree_util.tree_map_with_path(normalized, directions, nu)
        state = NormalizeNeuronsState(state.count + 1, nu)
        return cast_like(new, updates), state

    def matrices(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: isinstance(rule(path, leaf), Matrix), tree
        )

    own = over_leaves(init_fn, update_fn, real="normalize_neurons")
    tx = optax.masked(own, matrices, mask_compatible_extra_args=True)
    return over_leaves(tx.init, tx.update)
