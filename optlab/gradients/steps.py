"""Steps that are made of more than a gradient: a regularised Newton step, a surrogate.

They take the loss itself, so they are functions of a whole step and no optax
transforms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from optlab import checks
from optlab.gradients.curvature import hvp

PyTree = Any


class NewtonStep(NamedTuple):
    """One step of the gradient-normalised Newton method.

    Attributes:
      params: after the step; as they were where no try was accepted.
      gamma: for the next step.
      loss: at `params`.
      grad_norm: before the step.
      tries: how many values of gamma were tried.
      accepted: whether one was.
    """

    params: PyTree
    gamma: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    tries: jax.Array
    accepted: jax.Array


def normalized_newton_step(
    loss: Callable[..., jax.Array],
    params: PyTree,
    gamma: jax.Array | float,
    *args: Any,
    tries: int = 40,
    eps: float = 1e-8,
    solver_steps: int = 100,
    solver_tolerance: float = 1e-8,
) -> NewtonStep:
    """A Newton step, regularised by the norm of the gradient; `gamma` is searched for.

    With gradient `g` and Hessian `H`::

        x+ = x - (H + lambda I)^-1 g ;  lambda = |g| / (gamma + eps)
        accepted if f(x) - f(x+) >= |g+|^2 / (8 lambda)

    `gamma` is halved until a try is accepted and is doubled for the next step. It
    estimates how far the Hessian stays good, relative to the gradient. For full
    batches: a noisy loss refuses good steps. The system is solved by conjugate
    gradients with `optlab.hvp`, so `H + lambda I` must be positive definite, as it is
    for convex losses.

    Args:
      loss: `loss(params, *args)` -> scalar, twice differentiable.
      params: the point, of float32 or wider.
      gamma: that of the last step; 1 at the start.
      *args: of the loss.
      tries: the most values of gamma that are tried.
      eps: added to gamma.
      solver_steps: of conjugate gradients at most, one Hessian product each.
      solver_tolerance: of its residual, relative to the gradient.

    Returns:
      The new point and the next gamma.

    Raises:
      ValueError: an argument is out of range.

    References:
      `Gradient-Normalized Smoothness for Optimization with Approximate Hessians
      <https://arxiv.org/abs/2506.13710>`_; epfml/grad-norm-smooth at commit 9f4ca00.
    """
    checks.positive_int(tries=tries, solver_steps=solver_steps)
    checks.positive(eps=eps, solver_tolerance=solver_tolerance)
    value_and_grad = jax.value_and_grad(lambda p: loss(p, *args))
    value, grads = value_and_grad(params)
    norm = optax.tree.norm(grads)
    gamma = jnp.asarray(gamma, norm.dtype)

    def attempt(gamma):
        shift = norm / (gamma + eps)

        def system(v):
            return jax.tree.map(
                lambda h, x: h + shift.astype(x.dtype) * x,
                *(hvp(loss, params, v, *args), v),
            )

        step, _ = cg(system, grads, tol=solver_tolerance, maxiter=solver_steps)
        moved = jax.tree.map(jnp.subtract, params, step)
        after, slope = value_and_grad(moved)
        needed = jnp.square(optax.tree.norm(slope)) / (8 * shift)
        # At the minimum both sides are zero and nothing moves.
        return moved, after, (value - after >= needed) & jnp.isfinite(after)

    def again(carry):
        count, gamma, _, _, accepted = carry
        del accepted
        moved, after, good = attempt(gamma)
        following = jnp.where(good, 2 * gamma, gamma / 2)
        return count + 1, following, moved, after, good

    def unfinished(carry):
        count, *_, accepted = carry
        return (count < tries) & ~accepted & (norm > 0)

    start = (jnp.zeros((), jnp.int32), gamma, params, value, jnp.asarray(False))
    count, gamma, moved, after, good = jax.lax.while_loop(unfinished, again, start)
    kept = jax.tree.map(lambda x, old: jnp.where(good, x, old), moved, params)
    return NewtonStep(kept, gamma, jnp.where(good, after, value), norm, count, good)


def target_step(
    model: Callable[[PyTree, Any], jax.Array],
    loss: Callable[[jax.Array, Any], jax.Array],
    params: PyTree,
    inputs: Any,
    targets: Any,
    *,
    tx: optax.GradientTransformation,
    eta: float,
    steps: int,
) -> tuple[PyTree, jax.Array]:
    """One outer step in the space of a model's outputs: cheap steps on a surrogate.

    With outputs `z_t = model(x)` and `d = dloss/dz` taken once, `steps` steps of `tx`
    minimise::

        <d, z - z_t> + |z - z_t|^2 / (2 eta)                  z = model(params)

    the least of which, over all outputs, is `z_t - eta d`: a gradient step in the
    outputs, which are often far better conditioned than the parameters. The loss and
    what it costs are called once an outer step. The authors write the same surrogate
    times `2 eta`, as a mean.

    Args:
      model: `model(params, inputs)` -> outputs.
      loss: `loss(outputs, targets)` -> scalar.
      params: before the step.
      inputs: of the model.
      targets: of the loss.
      tx: the inner optimizer, whose state begins with each outer step.
      eta: the step in the outputs, above 0; below 2 over the loss's curvature there.
      steps: of the inner optimizer.

    Returns:
      The parameters after the step, and the loss before it.

    Raises:
      ValueError: an argument is out of range, or `tx` is no transform.

    References:
      Lavington et al., `Target-based Surrogates for Stochastic Optimization
      <https://arxiv.org/abs/2302.02607>`_; its code at commit 205dde6.
    """
    checks.transform(tx=tx)
    checks.positive(eta=eta)
    checks.positive_int(steps=steps)
    outputs = model(params, inputs)
    value, slope = jax.value_and_grad(loss)(outputs, targets)

    def surrogate(p):
        moved = model(p, inputs) - outputs
        return jnp.sum(slope * moved + jnp.square(moved) / (2 * eta))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(surrogate)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    return params, value
