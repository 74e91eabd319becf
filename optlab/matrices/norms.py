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
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optlab import checks
from optlab.matrices.buckets import Distribute, map_matrices
from optlab.matrices.linalg import frobenius_norm, nuclear_norm_estimate, unit
from optlab.matrices.orthogonalize import orthogonalize
from optlab.roles import Embedding, Matrix, Rule, View

# Added to the norm that Newton-Schulz divides by: noise has no natural scale.
_TINY = 1e-30

DualNorm = (
    Literal["newton_schulz", "lanczos", "exact", "frobenius"]
    | Callable[[jax.Array], jax.Array]
)


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
    over: Sequence[jax.Array],
    ns_steps: int,
    ns_dtype: Any,
    distribute: Distribute | None,
    chunk_bytes: int | None,
) -> list[jax.Array]:
    """The LMO of every layer, of unit norm, in the shape of the leaves.

    `over` are arrays like the leaves that it may be written over, if they are of no
    further use.
    """

    def polar(x):
        return (orthogonalize(x, steps=ns_steps, dtype=ns_dtype),)

    hidden = _on_matrices(
        *(polar, (over, arrays), lambda _, x: (x,), layers),
        distribute=distribute,
        chunk_bytes=chunk_bytes,
    )
    return [
        layer.scale
        * (hidden[i][0] if i in hidden else _ASCENT[layer.group](x, layer.axes))
        for i, (x, layer) in enumerate(zip(arrays, layers, strict=True))
    ]


def dual_norms(
    arrays: Sequence[jax.Array],
    others: Sequence[jax.Array],
    layers: Sequence[Layers],
    *,
    dual_norm: DualNorm,
    ns_steps: int,
    ns_dtype: Any,
    distribute: Distribute | None,
    chunk_bytes: int | None = None,
    due: jax.Array | None = None,
    keep: bool = False,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The dual norm of every layer of a difference, in the shape of the leaves' stacks.

    Args:
      arrays: the leaves.
      others: what is taken off them.
      layers: of each leaf.
      dual_norm: how the nuclear norm is found, see :func:`optlab.noise_adaptive`.
      ns_steps, ns_dtype: of "newton_schulz".
      distribute, chunk_bytes: how the matrix work is spread, and cut.
      due: whether the norms are of use; where not, those of hidden matrices may be
        anything. None: they are.
      keep: whether the leaves are to be written over `others`, where that saves memory.

    Returns:
      The norms, and the leaves again.
    """

    def newton_schulz(x):
        polar = orthogonalize(x, steps=ns_steps, eps=_TINY, dtype=ns_dtype)
        return jnp.sum(x * polar, axis=(-2, -1))

    def exact(x):
        return jnp.sum(jnp.linalg.svd(x, compute_uv=False), axis=-1)

    named = {
        "newton_schulz": newton_schulz,
        "lanczos": nuclear_norm_estimate,
        "exact": exact,
        "frobenius": None,
    }
    nuclear = named[dual_norm] if isinstance(dual_norm, str) else dual_norm
    hidden, keep = {}, keep and distribute is None
    if nuclear is not None:  # The Frobenius norm needs no stacks, and nothing moved.

        def of_difference(difference, *same):
            return *(same or (None,)), nuclear(difference)

        def if_due(other, x):
            norm = lax.cond(
                due,
                lambda: nuclear(_difference(x, other)),
                lambda: jnp.zeros_like(x[:, 0, 0]),
            )
            return x if keep else None, norm

        hidden = _on_matrices(
            of_difference if due is None else if_due,
            (others, arrays),
            (lambda o, x: (_difference(x, o), x)[: 1 + keep]) if due is None else None,
            layers,
            distribute=distribute,
            chunk_bytes=chunk_bytes,
        )
    norms, leaves = [], []
    for i, (x, other, layer) in enumerate(zip(arrays, others, layers, strict=True)):
        if i in hidden:
            same, value = hidden[i]
        else:
            same, value = None, _DUAL[layer.group](_difference(x, other), layer.axes)
        norms.append(layer.scale * value)
        leaves.append(x if same is None else same)
    return norms, leaves


def _difference(x: jax.Array, other: jax.Array) -> jax.Array:
    return x - other.astype(x.dtype)


def check_dual_norm(dual_norm: DualNorm) -> None:
    """Raises `ValueError` for what is neither a function nor a known name."""
    if not callable(dual_norm):
        names = ("newton_schulz", "lanczos", "exact", "frobenius")
        checks.one_of(names, dual_norm=dual_norm)


def _on_matrices(
    f: Callable[..., tuple[Any, ...]],
    trees: Sequence[Sequence[jax.Array]],
    made: Callable[..., tuple[jax.Array, ...]] | None,
    layers: Sequence[Layers],
    *,
    distribute: Distribute | None,
    chunk_bytes: int | None,
) -> dict[int, tuple[Any, ...]]:
    """The results of `f` on the hidden matrices, by place; all of a shape at once."""
    hidden = [i for i, layer in enumerate(layers) if layer.view is not None]
    columns = map_matrices(
        f,
        [layers[i].view for i in hidden],
        [[arrays[i] for i in hidden] for arrays in trees],
        made=made,
        distribute=distribute,
        chunk_bytes=chunk_bytes,
        wide=True,
    )
    return dict(zip(hidden, zip(*columns, strict=True), strict=True))


def _entrywise(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(jnp.abs(x), axis=axes)


_ASCENT = {"embedding": lambda x, axes: jnp.sign(x), "vector": unit}
_DUAL = {
    "matrix": frobenius_norm,
    "embedding": _entrywise,
    "vector": frobenius_norm,
}
