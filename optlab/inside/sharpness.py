"""Sharpness, raw and as a preconditioner sees it, and the edge of stability.

Sharpness is the largest eigenvalue of the Hessian `H`. Gradient descent is stable on a
quadratic where it is below 2 over the rate, and full-batch training goes to that edge
and stays there. A method whose step is `rate * P^-1 m`, with a diagonal `P` that
changes slowly, is at its edge by the largest eigenvalue of `P^-1/2 H P^-1/2`.

References:
  Cohen et al., `Gradient Descent on Neural Networks Typically Occurs at the Edge of
  Stability <https://arxiv.org/abs/2103.00065>`_; Cohen et al., `Adaptive Gradient
  Methods at the Edge of Stability <https://arxiv.org/abs/2207.14484>`_, of which the
  bound with momentum is written from memory and tested on quadratics.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab.compose import bias_correction
from optlab.inside.spectrum import Product
from optlab.optimizers.adahessian import ScaleByAdaHessianState
from optlab.optimizers.spam import ScaleBySpamState
from optlab.wrappers.spikes import restart_warmup, window_position

PyTree = Any

# States that scale all of an update alike, or hold another one.
_BESIDE = (
    optax.EmptyState,
    optax.InjectStatefulHyperparamsState,
    optax.MaskedState,
    optax.ScaleByScheduleState,
)


def preconditioned(product: Product, preconditioner: PyTree) -> Product:
    """The product `v -> P^-1/2 A P^-1/2 v`.

    Args:
      product: `v -> A v`, of trees like the parameters.
      preconditioner: the diagonal of `P`, a tree like the parameters. An entry of 0
        belongs to a parameter that never had a gradient; it is left out.
    """
    roots = jax.tree.map(
        lambda p: jnp.where(p > 0, jax.lax.rsqrt(jnp.where(p > 0, p, 1)), 0),
        preconditioner,
    )

    def scaled(v):
        return jax.tree.map(lambda x, r: x * r.astype(x.dtype), v, roots)

    return lambda v: scaled(product(scaled(v)))


def diagonal_preconditioner(
    state: optax.OptState, params: optax.Params, arguments: Mapping[str, Any]
) -> PyTree | None:
    """The diagonal `P` for which the last step was `rate * P^-1 m`.

    Of Adam, SPAM and AdaHessian::

        P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)         m as the state holds it

    with `(.)^hessian_power` around AdaHessian's root, and its number of Hessian steps
    for `t` there; divided by the share of the rate that SPAM takes after a reset.

    Args:
      state: of an optimizer that has made at least one step; other transforms may be
        around it.
      params: whose shapes are compared.
      arguments: `b1`, `b2`, `eps` and the like that the optimizer was made with.

    Returns:
      A tree like `params`, or None where the state has no such diagonal for all of
      them: matrix methods, sign methods, sparse SPAM, other transforms in the chain, or
      before the first step.
    """
    nodes = list(_nodes(state))
    if len(nodes) != 1 or type(nodes[0]) not in _DIAGONALS:
        return None
    node = nodes[0]
    moments, treedef = jax.tree.flatten(node.nu)
    leaves, wanted = jax.tree.flatten(params)
    alike = [x.shape for x in moments] == [p.shape for p in leaves]
    if not alike or treedef != wanted or int(node.count) == 0:
        return None
    return _DIAGONALS[type(node)](node, dict(arguments))


class Edge(NamedTuple):
    """Where the edge of stability of an optimizer lies.

    Attributes:
      preconditioner: the diagonal `P`, a tree like the parameters.
      bound: of the largest eigenvalue of `P^-1/2 H P^-1/2`.
    """

    preconditioner: PyTree
    bound: float


def edge_of_stability(
    state: optax.OptState,
    params: optax.Params,
    arguments: Mapping[str, Any],
    learning_rate: float,
) -> Edge | None:
    """The preconditioner and the bound of a state: of SGD, Adam, SPAM, AdaHessian.

    Args:
      state: as of `diagonal_preconditioner`.
      params: likewise.
      arguments: those that the optimizer was made with; of SGD `momentum` and
        `nesterov`.
      learning_rate: in force; above 0, or the bound is infinite.

    Returns:
      None for methods whose step is not that of a diagonal and a momentum.
    """
    nodes = list(_nodes(state))
    if [type(node) for node in nodes] in ([], [optax.TraceState]):
        momentum = (arguments.get("momentum") or 0.0) if nodes else 0.0
        kind = "nesterov" if arguments.get("nesterov") else "heavy_ball"
        ones = jax.tree.map(jnp.ones_like, params)
        return Edge(ones, stability_bound(learning_rate, momentum=momentum, kind=kind))
    diagonal = diagonal_preconditioner(state, params, arguments)
    if diagonal is None:
        return None
    return Edge(diagonal, stability_bound(learning_rate, momentum=arguments["b1"]))


def stability_bound(
    learning_rate: float, *, momentum: float = 0.0, kind: str = "average"
) -> float:
    """The largest eigenvalue at which a method is stable on a quadratic.

    ==========  ===========================================  =======================
    kind        momentum                                     bound times rate
    ==========  ===========================================  =======================
    average     `m = b m + (1-b) g`, as Adam's               `2 (1+b) / (1-b)`
    heavy_ball  `m = b m + g`, as SGD's                      `2 (1+b)`
    nesterov    the same, step along `b m + g`               `2 (1+b) / (1+2b)`
    ==========  ===========================================  =======================

    Args:
      learning_rate: above 0; at 0 nothing moves, and the bound is infinite.
      momentum: `b`, in [0, 1).
      kind: how the momentum is made.

    Raises:
      ValueError: there is no such kind.
    """
    b = momentum
    bounds = {
        "average": 2 * (1 + b) / (1 - b),
        "heavy_ball": 2 * (1 + b),
        "nesterov": 2 * (1 + b) / (1 + 2 * b),
    }
    if kind not in bounds:
        raise ValueError(f"kind must be one of {', '.join(bounds)}, got {kind!r}")
    return bounds[kind] / learning_rate if learning_rate else float("inf")


def _nodes(state: Any) -> Iterator[Any]:
    """The states in it that shape a direction; rates and empty ones do not."""
    if isinstance(state, _BESIDE):
        yield from _nodes(getattr(state, "inner_state", ()))
    elif hasattr(state, "_fields"):
        yield state
    elif isinstance(state, tuple | list | dict):
        for inner in state.values() if isinstance(state, dict) else state:
            yield from _nodes(inner)


def _root(nu: jax.Array, b2: float, count: jax.Array) -> jax.Array:
    return jnp.sqrt(nu / bias_correction(b2, count, nu.dtype))


def _adam(state: Any, given: Mapping[str, Any]) -> PyTree:
    b1, b2, eps = (given[name] for name in ("b1", "b2", "eps"))

    def diagonal(nu):
        first = bias_correction(b1, state.count, nu.dtype)
        return first * (_root(nu, b2, state.count) + eps)

    return jax.tree.map(diagonal, state.nu)


def _spam(state: ScaleBySpamState, given: Mapping[str, Any]) -> PyTree:
    b1, b2, eps = (given[name] for name in ("b1", "b2", "eps"))
    interval, warmup = given["reset_interval"], given["warmup_steps"]
    t = state.count

    def diagonal(nu):
        # As SPAM has it: eps is beside the root without its correction.
        scale = jnp.sqrt(bias_correction(b2, t, nu.dtype))
        scale = scale / bias_correction(b1, t, nu.dtype)
        if interval and warmup:
            position = window_position(t, interval)
            scale *= restart_warmup(t, position, interval, warmup, nu.dtype)
        return (jnp.sqrt(nu) + eps) / scale

    return jax.tree.map(diagonal, state.nu)


def _adahessian(state: ScaleByAdaHessianState, given: Mapping[str, Any]) -> PyTree:
    b1, b2, eps = (given[name] for name in ("b1", "b2", "eps"))
    interval, power = given["hessian_interval"], given["hessian_power"]
    hessians = (state.count - 1) // interval + 1

    def diagonal(nu):
        first = bias_correction(b1, state.count, nu.dtype)
        return first * (_root(nu, b2, hessians) ** power + eps)

    return jax.tree.map(diagonal, state.nu)


_DIAGONALS: dict[type, Callable[[Any, Mapping[str, Any]], PyTree]] = {
    optax.ScaleByAdamState: _adam,
    ScaleBySpamState: _spam,
    ScaleByAdaHessianState: _adahessian,
}
