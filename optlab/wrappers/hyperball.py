"""Steps on a sphere: every matrix keeps the Frobenius norm that it started with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optlab import checks
from optlab.compose import in_state_dtype, open_to_masks, with_sign
from optlab.leaves import over_leaves
from optlab.matrices.linalg import frobenius_norm
from optlab.options import Number, Roles
from optlab.roles import Matrix, as_rule, leaf_name, tree_views
from optlab.state import say


class HyperballState(NamedTuple):
    """State of the steps on a sphere; `radius` has a leaf's stack axes only."""

    count: jax.Array  # ()
    radius: optax.Updates  # R, one number a matrix
    inner: optax.OptState


def hyperball(
    direction: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    eps: Number = 1e-10,
    roles: Roles = None,
) -> optax.GradientTransformationExtraArgs:
    """Steps of a relative size along a direction, at a constant Frobenius norm.

    For a matrix `W` of initial norm `R`, and the direction `u`::

        W' = W - lr R u / max(|u|_F, eps) ;  W <- W' R / |W'|_F

    A slice of a stack is its own matrix. Only the direction of `u` counts, so
    that shape factors and corrections of bias cancel, and there is no weight decay. It
    stands in the place of decay and rate, and returns `W_new - W`, so that nothing may
    scale its updates. For trees of hidden matrices only: tables, where rows need a rate
    each, and vectors, which may be zero, go to another transform.

    Example:
      >>> import optax, optlab
      >>> tx = optlab.by_role(
      ...     optlab.hyperball(optlab.scale_by_cosmos(rank=8), 2e-2),
      ...     optax.adam(6e-4),
      ... )

    Args:
      direction: what makes `u`, which ascends: one of `optlab.directions`, a
        `scale_by_...`, or a chain of them. Not an optimizer, whose updates descend:
        one of this library is refused, whatever follows it in a chain; with another
        one, such as `optax.adam`, the loss would rise.
      learning_rate: the relative step, a number or a schedule. A rule of thumb from a
        run with decay is `sqrt(learning_rate weight_decay)`.
      eps: the least norm that `u` is divided by.
      roles: see :mod:`optlab.options`.

    Returns:
      The transform. `update` needs the parameters; the state is one number a matrix
      beside that of `direction`.

    Raises:
      ValueError: an argument is out of range; or, in `init`, `direction` is an
        optimizer, a leaf is no hidden matrix, or a matrix is zero, and would stay so.
        Under `jax.jit` zeros cannot be found, and the first update of such a matrix is
        NaN.

    References:
      *Hyperball optimizers*, marin-community/marin: muonh.py, adamh.py, 2026.
    """
    checks.rate(learning_rate=learning_rate)
    if learning_rate is None:
        raise ValueError("learning_rate must be a number or a schedule, got None")
    checks.non_negative(eps=eps)
    rule = as_rule(roles)
    inner = open_to_masks(direction, "hyperball")

    def axes_of(path: Any, leaf: Any) -> tuple[int, ...]:
        role = rule(path, leaf)
        assert isinstance(role, Matrix)
        return role.rows + role.cols

    def refuse_zero(path: Any, leaf: Any) -> None:
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            with jax.ensure_compile_time_eval():
                alive = jnp.any(leaf != 0, axis=axes_of(path, leaf))
                if not bool(jnp.all(alive)):
                    raise ValueError(_zero(path, alive))

    def init_fn(params):
        tree_views(params, rule, "hyperball")
        say("sphere", params, True)
        say("start", params, refuse_zero)
        jax.tree_util.tree_map_with_path(refuse_zero, params)

        def radius(path, p):
            norm = frobenius_norm(p, axes_of(path, p))
            return jnp.where(norm > 0, norm, jnp.nan)

        return HyperballState(
            count=jnp.zeros([], jnp.int32),
            radius=jax.tree_util.tree_map_with_path(radius, params),
            inner=inner.init(params),
        )

    def update_fn(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("params: hyperball needs update(grads, state, params)")
        directions, inner_state = inner.update(updates, state.inner, params, **extra)
        rate: Any = learning_rate
        if callable(rate):
            rate = rate(state.count)

        def step(path, w, u, r):
            axes = axes_of(path, w)
            r = jnp.expand_dims(r, axes)
            length = frobenius_norm(u, axes, keepdims=True)
            new = w - (rate * r / jnp.maximum(length, eps)) * u
            norm = frobenius_norm(new, axes, keepdims=True)
            # Without a step the weights stay, to the bit.
            stays = (norm == 0) | (rate * length == 0)
            back = r / jnp.where(norm == 0, 1.0, norm)
            return jnp.where(stays, 0.0, new * back - w)

        steps = jax.tree_util.tree_map_with_path(step, params, directions, state.radius)
        return steps, HyperballState(state.count + 1, state.radius, inner_state)

    tx = over_leaves(init_fn, update_fn, real="hyperball")
    return in_state_dtype(with_sign(tx, descends=True))


def _zero(path: Any, alive: Any) -> str:
    where: Sequence[int] = [int(i) for i in jnp.argwhere(~alive)[0]]
    slice_of = f"slice {', '.join(map(str, where))} of " if where else ""
    return (
        f"hyperball: {slice_of}{leaf_name(path)!r} is zero, and would stay so; "
        "initialise it, or give it to another transform with optlab.by_role"
    )
