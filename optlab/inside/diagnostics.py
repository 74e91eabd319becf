"""What each layer of a training step looks like: ratios, norms, spikes, noise.

One number a layer, and a layer of a stacked leaf is one of its slices. Made to be
compiled apart from the training step and run now and then.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import registry
from optlab.compose import to_state_dtype
from optlab.leaves import under_auto_axes
from optlab.matrices import linalg
from optlab.matrices.norms import Layers, tree_layers
from optlab.matrices.precision import product
from optlab.roles import Rule, as_rule, leaf_name
from optlab.state import Observed, owning_parameter, state_leaves

# Fields of a state that hold a momentum.
_MOMENTA = ("mu", "trace", "momentum")
# The estimate of a spectral norm comes from below; 16 steps leave a few percent where
# the largest singular values lie close together.
_POWER_STEPS = 16

Values = dict[str, dict[str, jax.Array]]


def layer_diagnostics(
    grads: optax.Updates,
    updates: optax.Updates,
    params: optax.Params,
    before: optax.OptState,
    after: optax.OptState,
    *,
    roles: Any = None,
    arguments: Mapping[str, Any] | None = None,
    extra: Mapping[str, optax.Updates] | None = None,
) -> Values:
    """The numbers of one update, by name and by parameter.

    Every optimizer has `layer_grad_norm`, `layer_update_ratio` (root mean square of the
    update over that of the weights), and for hidden matrices
    `layer_orthogonality_error`, `|U U^T m / |U|^2 - I| / sqrt(m)` of the update `U`
    with `m` rows, 0 where all its singular values are one, and
    `layer_momentum_norm`, the spectral norm of the momentum where there is one.

    What a state holds for each layer, such as the noise of LANTON, comes by its field:
    `layer_noise`. With `hessian_diag` in `extra` there is `layer_hessian_trace`.

    Methods add their own, which :func:`optlab.register` takes as `diagnose`. LANTON has
    `layer_rate`, the share of its rate that a layer gets; SPAM `layer_spikes`, the
    share of the entries that were clipped; ROOT `layer_clipped`, the share of the
    momentum's energy above its threshold.

    Args:
      grads: what the optimizer got.
      updates: what it gave; without weight decay, or that is in it too.
      params: before the update.
      before: the optimizer's state before the update.
      after: and after.
      roles: the optimizer's.
      arguments: the keyword arguments that the optimizer was made with; those not
        given are at their defaults.
      extra: the extra arguments of the update.

    Returns:
      `{name: {path of the parameter: array of the stack's shape}}`.
    """
    measure = partial(_measure, as_rule(roles), dict(arguments or {}))
    return under_auto_axes(measure)(grads, updates, params, before, after, extra)


def _measure(rule: Rule, given: Mapping[str, Any], *trees: Any) -> Values:
    """What `layer_diagnostics` gives."""
    grads, updates, params, before, after, extra = trees
    layers = dict(_with_names(params, tree_layers(params, rule, 1.0)))
    gradients = dict(_with_names(grads, jax.tree.leaves(to_state_dtype(grads))))
    steps = dict(_with_names(updates, jax.tree.leaves(to_state_dtype(updates))))
    weights = dict(_with_names(params, jax.tree.leaves(to_state_dtype(params))))
    ratios = {}
    for name, layer in layers.items():
        size = jnp.maximum(_norm(weights[name], layer), 1e-30)
        ratios[name] = _norm(steps[name], layer) / size
    values: Values = {
        "layer_grad_norm": {n: _norm(gradients[n], layers[n]) for n in layers},
        "layer_update_ratio": ratios,
        "layer_orthogonality_error": {
            n: _orthogonality_error(steps[n], layer)
            for n, layer in layers.items()
            if layer.view is not None
        },
    }
    for name, parameter, leaf in _owned(after, params):
        layer = layers[parameter]
        if name in _MOMENTA and leaf.shape == weights[parameter].shape:
            if layer.view is not None:
                norms = values.setdefault("layer_momentum_norm", {})
                norms[parameter] = _spectral_norm(leaf, layer)
        elif leaf.shape == layer.stack:
            values.setdefault(f"layer_{name}", {})[parameter] = leaf
    if extra and "hessian_diag" in extra:
        diagonal = extra["hessian_diag"]
        values["layer_hessian_trace"] = {
            name: jnp.sum(leaf, layers[name].axes)
            for name, leaf in _with_names(diagonal, jax.tree.leaves(diagonal))
        }
    for kind, diagnose in registry.diagnosed():
        for old, new in zip(_nodes(before, kind), _nodes(after, kind), strict=True):
            found = diagnose(Observed(gradients, old, new, rule, given))
            for name, tree in found.items():
                own = _with_names(tree, jax.tree.leaves(tree))
                values.setdefault(name, {}).update(own)
    return values


def _with_names(tree: Any, leaves: list[Any]) -> Iterator[tuple[str, Any]]:
    paths = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return zip(paths, leaves, strict=True)


def _owned(state: Any, params: Any) -> Iterator[tuple[str, str, jax.Array]]:
    """The state's arrays that belong to a parameter: field, parameter, array."""
    paths = {tuple(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    for leaf in state_leaves(state):
        owner = owning_parameter(leaf.path, paths)
        if owner is not None and len(leaf.path) > len(owner):
            field = leaf_name(leaf.path[: -len(owner)]).rpartition("/")[2]
            yield field, leaf_name(owner), leaf.value


def _nodes(state: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _norm(x: jax.Array, layer: Layers) -> jax.Array:
    return linalg.frobenius_norm(x, axis=layer.axes)


def _matrices(x: jax.Array, layer: Layers) -> jax.Array:
    """`(S, m, n)` with `m <= n`."""
    assert layer.view is not None
    matrices = layer.view.matrices(x)
    return matrices.mT if layer.view.m > layer.view.n else matrices


def _orthogonality_error(update: jax.Array, layer: Layers) -> jax.Array:
    u = _matrices(update, layer)
    rows = u.shape[-2]
    norm = linalg.frobenius_norm(u, axis=(-2, -1), keepdims=True)
    u = u * (math.sqrt(rows) / jnp.maximum(norm, 1e-30))
    error = product(u, u.mT) - jnp.eye(rows, dtype=u.dtype)[None]
    size = linalg.frobenius_norm(error, axis=(-2, -1)) / math.sqrt(rows)
    return size.reshape(layer.stack)


def _spectral_norm(x: jax.Array, layer: Layers) -> jax.Array:
    matrices = _matrices(x, layer)
    start = jax.random.normal(jax.random.key(0), (matrices.shape[-1], 1))
    v = jnp.broadcast_to(start, (len(matrices), *start.shape)).astype(matrices.dtype)

    def step(_, v):
        v = v / jnp.maximum(linalg.frobenius_norm(v, (-2, -1), True), 1e-30)
        return product(matrices.mT, product(matrices, v))

    v = jax.lax.fori_loop(0, _POWER_STEPS, step, v)
    return jnp.sqrt(linalg.frobenius_norm(v, (-2, -1))).reshape(layer.stack)
