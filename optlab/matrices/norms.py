"""A norm for every role: its steepest ascent (LMO) and its dual norm, by layer.

==================  =====================================  ==========================
group               LMO(B)                                 dual norm |D|_*
==================  =====================================  ==========================
hidden matrices     sqrt(d_out/d_in) polar factor of B     sqrt(d_out/d_in) nuclear
embeddings, heads   embedding_scale sign(B)                embedding_scale sum |D_ij|
vectors             sqrt(d) B / |B|_2, 0 at 0              sqrt(d) |D|_2
==================  =====================================  ==========================

A layer is one slice of a stack. A convolution kernel has `sqrt(d_out/d_in) / k` with
`d_in` channels and `k` positions. A vector leaf with several axes is a stack over all
but its last one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optlab import checks
from optlab.matrices.buckets import Distribute, map_matrices
from optlab.matrices.linalg import frobenius_norm, nuclear_norm_estimate, unit
from optlab.matrices.orthogonalize import orthogonalize
from optlab.roles import Embedding, Matrix, Rule, View

# Added to the norm that Newton-Schulz divides by: noise has no natural scale.
_TINY = 1e-30

DualNorm = str | Callable[[jax.Array], jax.Array]


class Layers(NamedTuple):
    """A leaf as the layers that its norm sees.

    Attributes:
      group: "matrix", "embedding" or "vector".
      axes: those of one layer; the others are the stack.
      scale: of the LMO and of the dual norm.
      view: of hidden matrices, else None.
      stack: sizes of the stack axes.
    """

    group: str
    axes: tuple[int, ...]
    scale: float
    view: View | None
    stack: tuple[int, ...]


def tree_layers(tree: Any, rule: Rule, embedding_scale: Any) -> list[Layers]:
    """The layers of every leaf, in the tree's order.

    Args:
      tree: arrays with the shapes of the parameters.
      rule: what decides the roles.
      embedding_scale: of embeddings and heads. None: one over the width.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [_layers(path, leaf, rule, embedding_scale) for path, leaf in leaves]


def _layers(path: Any, leaf: Any, rule: Rule, embedding_scale: Any) -> Layers:
    role, shape = rule(path, leaf), leaf.shape
    every = tuple(range(len(shape)))
    if isinstance(role, Matrix):
        view = View.of(role, shape)
        positions = math.prod(shape[a] for a in role.spatial)
        scale = math.sqrt(view.n * positions / view.m) / positions
        return Layers("matrix", role.rows + role.cols, scale, view, view.stack)
    if isinstance(role, Embedding):
        if embedding_scale is None:
            embedding_scale = 1 / shape[role.width_axis(len(shape))]
        return Layers("embedding", every, embedding_scale, None, ())
    scale = math.sqrt(math.prod(shape[-1:]))
    return Layers("vector", every[-1:], scale, None, tuple(shape[:-1]))


def steepest_ascent(
    arrays: Sequence[jax.Array],
    layers: Sequence[Layers],
    *,
    ns_steps: int,
    ns_dtype: Any,
    distribute: Distribute | None,
) -> list[jax.Array]:
    """The LMO of every layer, of unit norm, in the shape of the leaves."""

    def polar(x):
        return (orthogonalize(x, steps=ns_steps, dtype=ns_dtype),)

    return _by_group(arrays, layers, _ASCENT, polar, distribute)


def dual_norms(
    arrays: Sequence[jax.Array],
    layers: Sequence[Layers],
    *,
    dual_norm: DualNorm,
    ns_steps: int,
    ns_dtype: Any,
    distribute: Distribute | None,
) -> list[jax.Array]:
    """The dual norm of every layer, in the shape of the leaves' stacks.

    Args:
      arrays: the leaves.
      layers: of each leaf.
      dual_norm: how the nuclear norm is found, see :func:`optlab.noise_adaptive`.
      ns_steps, ns_dtype: of "newton_schulz".
      distribute: how the matrix work is spread.
    """

    def newton_schulz(x):
        polar = orthogonalize(x, steps=ns_steps, eps=_TINY, dtype=ns_dtype)
        return None, jnp.sum(x * polar, axis=(-2, -1))

    def exact(x):
        return None, jnp.sum(jnp.linalg.svd(x, compute_uv=False), axis=-1)

    if isinstance(dual_norm, str):
        # The Frobenius norm needs no stacks, and nothing moved.
        named = {
            "newton_schulz": newton_schulz,
            "lanczos": partial(_with, nuclear_norm_estimate),
            "exact": exact,
            "frobenius": None,
        }
        nuclear = named[dual_norm]
    else:
        nuclear = partial(_with, dual_norm)
    return _by_group(arrays, layers, _DUAL, nuclear, distribute)


def _with(norm: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple:
    return None, norm(x)


def check_dual_norm(dual_norm: DualNorm) -> None:
    """Raises `ValueError` for what is neither a function nor a known name."""
    if not callable(dual_norm):
        names = ("newton_schulz", "lanczos", "exact", "frobenius")
        checks.one_of(names, dual_norm=dual_norm)


def _by_group(
    arrays: Sequence[jax.Array],
    layers: Sequence[Layers],
    functions: Mapping[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]],
    stacked: Callable[[jax.Array], tuple] | None,
    distribute: Distribute | None,
) -> list[jax.Array]:
    """`scale * f(leaf, axes)`, with `f` by group.

    `stacked` takes the hidden matrices instead, all equal and transposed shapes as one
    stack, and the last of its results counts.
    """
    hidden = [i for i, x in enumerate(layers) if stacked and x.view is not None]
    found = {}
    if stacked and hidden:
        views = [layers[i].view for i in hidden]
        matrices = [arrays[i] for i in hidden]
        *_, column = map_matrices(
            stacked, views, (matrices,), distribute=distribute, wide=True
        )
        found = dict(zip(hidden, column, strict=True))
    results = []
    for i, (x, layer) in enumerate(zip(arrays, layers, strict=True)):
        value = found[i] if i in found else functions[layer.group](x, layer.axes)
        results.append(layer.scale * value)
    return results


def _entrywise(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(jnp.abs(x), axis=axes)


_ASCENT = {"embedding": lambda x, axes: jnp.sign(x), "vector": unit}
_DUAL = {
    "matrix": frobenius_norm,
    "embedding": _entrywise,
    "vector": frobenius_norm,
}
