"""The usual rule: declared stacks, then names, then the rank, in a known layout."""

import logging
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from optlab import checks
from optlab.roles import names
from optlab.roles.kinds import EMBEDDING, VECTOR, Embedding, Matrix, Role

_LOG = logging.getLogger("optlab")

Layout = Literal["flax", "torch", "haiku", "maxtext", "einsum"]
LAYOUTS: tuple[str, ...] = ("flax", "torch", "haiku", "maxtext", "einsum")

Stacked = str | Sequence[str] | Mapping[str, int]

# Kernels of Hugging Face's FlaxConv1D, `(out, in)`; its other kernels are flax's.
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})

# Einsum weights by the word that owns them: axes of stack, rows and columns.
_EINSUMS = {
    "q_einsum": ((), (1,), (0, 2)),
    "kv_einsum": ((0,), (2,), (1, 3)),
    "qkv_einsum": ((0,), (2,), (1, 3)),
    "attn_vec_einsum": ((), (0, 1), (2,)),
    "gating_einsum": ((0,), (1,), (2,)),
}

# What MaxText stacks: scanned layers on axis 1, experts on axis 0.
_MAXTEXT_LAYERS = re.compile(r"(^|/)(\w+_)?layers/")
_MAXTEXT_EXPERTS = re.compile(r"(^|/)MoeBlock_\d+/w(i_\d|i|o)$")

# `(in, out)` and `(out, in)` convolutions are rank 3 and more.
_TORCH_CONVOLUTION = 3


@dataclass(frozen=True)
class DefaultRoles:
    """The rule that :func:`default_roles` makes: `rule(path, leaf)`.

    Attributes:
      stacked: patterns, each with the axis that it takes off; None: the next one.
      embeddings: patterns of tables and heads; None: the usual names.
      layout: which axes are inputs and outputs.
    """

    stacked: tuple[tuple[re.Pattern[str], int | None], ...]
    embeddings: tuple[re.Pattern[str], ...] | None
    layout: str

    def __call__(self, path: Any, leaf: Any) -> Role:
        """The role of a leaf; what is doubtful in it is logged once."""
        role, doubt = self.explain(path, leaf)
        if doubt:
            warn_once(names.leaf_name(path), tuple(leaf.shape), doubt)
        return role

    def explain(self, path: Any, leaf: Any) -> tuple[Role, str]:
        """The role of a leaf, and what is doubtful in it; "" for nothing."""
        name, shape = names.leaf_name(path), tuple(leaf.shape)
        stack = self.stack_axes(name, shape)
        axes = tuple(a for a in range(len(shape)) if a not in stack)
        sizes = _at(shape, axes)
        if len(axes) < 2 or names.is_vector(name, self.layout, sizes):
            return VECTOR, ""
        if self._is_embedding(name, len(axes)):
            return self._embedding(name, axes), ""
        role, doubt = self._matrix(name, axes)
        if not doubt and self.layout == "einsum" and _is_turned(name, role, shape):
            doubt = _TURNED
        if not doubt and 1 in (_size(role.rows, shape), _size(role.cols, shape)):
            doubt = "a matrix with a side of 1: a vector, if it is none"
        return role, doubt

    def stack_axes(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes that `stacked` takes off a leaf.

        Raises:
          ValueError: the leaf has too few axes.
        """
        found: list[int] = []
        for pattern, axis in self.stacked:
            if pattern.search(name):
                found.append(len(found) if axis is None else axis)
        rank = len(shape)
        if self.layout == "maxtext" and not found and rank:
            if _MAXTEXT_EXPERTS.search(name):
                found.append(0)
            if _MAXTEXT_LAYERS.search(name):
                # Its scalars of a layer are scanned on axis 0.
                found.append(min(1, rank - 1))
        if len(found) > rank or any(not -rank <= axis < rank for axis in found):
            raise ValueError(
                f"stacked takes {len(found)} axes off {name!r} of shape {shape}: "
                f"{', '.join(map(str, found))}"
            )
        stack = tuple(axis % rank for axis in found)
        if len(set(stack)) < len(stack):
            raise ValueError(f"stacked takes the same axis off {name!r} twice: {stack}")
        return stack

    def _is_embedding(self, name: str, rank: int) -> bool:
        if self.embeddings is None:
            table = names.is_table(name) and not names.is_input_layer(name, rank)
            return names.is_head(name) or table
        return any(pattern.search(name) for pattern in self.embeddings)

    def _embedding(self, name: str, axes: tuple[int, ...]) -> Embedding:
        """A head's vocabulary is its outputs; a table's stands first."""
        head = names.is_head(name) or (
            names.is_kernel(name) and not names.is_table(name)
        )
        outputs_first = self.layout == "torch" and not name.endswith("kernel")
        axis = axes[-1] if head and not outputs_first else axes[0]
        return Embedding(axis) if axis else EMBEDDING

    def _matrix(self, name: str, axes: tuple[int, ...]) -> tuple[Matrix, str]:
        rank, owner = len(axes), names.owner(name)
        if self.layout == "einsum":
            for word in reversed(names.words(name)):
                stack, rows, cols = _EINSUMS.get(word, ((), (), ()))
                if rows and rank == len(stack + rows + cols):
                    return Matrix(_at(axes, rows), _at(axes, cols)), ""
        if self.layout == "torch" and (not name.endswith("kernel") or owner in _CONV1D):
            doubt = "" if rank != 3 or names.is_convolution(name) else _UNEXPLAINED
            if rank > 2 and names.is_transposed(name):
                doubt = _TRANSPOSED
            return Matrix(axes[1:], axes[:1], axes[2:]), doubt
        if rank == 2:
            return Matrix(axes[:1], axes[1:]), ""
        if half := names.lora_half(name):
            cut = -1 if half == "a" else 1
            return Matrix(axes[:cut], axes[cut:]), ""
        # A fourth axis is that of keys and values together, else a convolution's.
        if not names.is_convolution(name):
            if names.is_attention_input(name) and (rank == 3 or names.is_fused(name)):
                return Matrix(axes[:1], axes[1:]), ""
            if names.is_attention_output(name) and rank == 3:
                return Matrix(axes[:-1], axes[-1:]), ""
        doubt = "" if names.is_convolution(name) else _UNEXPLAINED
        return Matrix(axes[:-1], axes[-1:], axes[:-2]), doubt

    def unused(self, leaves: Sequence[str]) -> list[str]:
        """The patterns that are found in none of these names, as they were given."""
        return [
            f"{argument}: {pattern.pattern!r}"
            for argument, patterns in (
                ("stacked", [pattern for pattern, _ in self.stacked]),
                ("embeddings", self.embeddings or ()),
            )
            for pattern in patterns
            if not any(pattern.search(name) for name in leaves)
        ]


_TURNED = (
    "taken for (2, inputs, outputs); if it is written (2, outputs, inputs), as in "
    "gemma 2 and 3, give a tree of roles"
)
_TRANSPOSED = (
    "taken for (out, in, positions...), as Equinox writes it; if it is torch's (in, "
    "out, positions...), give a tree of roles"
)
_UNEXPLAINED = (
    "taken for a convolution kernel; if its first axis is a stack of layers, name it "
    "in default_roles(stacked=...)"
)


def default_roles(
    stacked: Stacked = (),
    embeddings: str | Sequence[str] | None = None,
    *,
    layout: Layout = "flax",
) -> DefaultRoles:
    """The usual rule: names decide embeddings and stacks, then the rank decides.

    Stack axes come off first. Then rank 0 and 1, and leaves called bias, scale or the
    like, are vectors; tables and heads are known by the last two components of their
    name (`embedding`, `wte`, `tok_emb`, `lm_head`, `logits_dense`, ...); rank 2 is a
    dense kernel. From rank 3 on a query, key or value kernel is `(in, heads, width)`,
    an attention output `(heads, width, in)`, and every other kernel a convolution.

    Example:
      >>> import jax.numpy as jnp, optlab
      >>> params = {"layers": {"up": {"kernel": jnp.zeros((12, 64, 256))}}}
      >>> rule = optlab.default_roles(stacked="^layers/")
      >>> print(optlab.describe(params, rule)[0].role)
      12 matrices 64x256

    Args:
      stacked: which leaves are stacks of layers or experts: a regular expression,
        searched in the leaf's name (:func:`leaf_name`), or several; each that is found
        takes off one more leading axis. Or a mapping of patterns to the axis that they
        take off, `{"layers/": 1}` where layers are scanned on axis 1.
      embeddings: regular expressions for the names of tables and heads, in the place
        of the usual names. None: those.
      layout: how the weights of a layer are written. "flax": `(in, out)`,
        `(positions..., in, out)`. "torch" (Equinox, state dictionaries): `(out, in)`,
        `(out, in, positions...)`. "haiku": flax's, and `b` is a bias. "maxtext":
        flax's, and what stands below a component `layers` is stacked on axis 1, unless
        `stacked` says otherwise. "einsum" (gemma): flax's, and `q_einsum` NDH,
        `kv_einsum` and `qkv_einsum` CNDH, `attn_vec_einsum` NHD,
        `gating_einsum` CDF.

    Returns:
      `rule(path, leaf)`; `leaf` is anything that has a shape.

    Raises:
      ValueError: a pattern is no regular expression or the layout unknown (now); or a
        leaf does not have the axes that `stacked` takes off (when the rule is asked).
    """
    checks.one_of(LAYOUTS, layout=layout)
    axes: Mapping[str, int | None]
    if isinstance(stacked, Mapping):
        axes = stacked
    else:
        axes = dict.fromkeys(_several("stacked", stacked))
    tables = None if embeddings is None else _several("embeddings", embeddings)
    return DefaultRoles(
        tuple((_pattern("stacked", p), _axis(p, axis)) for p, axis in axes.items()),
        None if tables is None else tuple(_pattern("embeddings", p) for p in tables),
        layout,
    )


def _is_turned(name: str, role: Matrix, shape: tuple[int, ...]) -> bool:
    """Whether gemma's gates have more inputs than outputs."""
    gates = "gating_einsum" in names.words(name)
    return gates and _size(role.rows, shape) > _size(role.cols, shape)


def _several(argument: str, patterns: Any) -> Sequence[Any]:
    """The patterns where one may stand alone."""
    found = [patterns] if isinstance(patterns, str | re.Pattern) else patterns
    if not isinstance(found, Sequence | Set):
        raise ValueError(
            f"{argument} must be a regular expression or several, got {patterns!r}"
        )
    return list(found)


def _pattern(argument: str, pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{argument}: {pattern!r} is no pattern: {error}") from None


def _axis(pattern: str, axis: Any) -> int | None:
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
        raise ValueError(f"stacked: the axis of {pattern!r} is no integer: {axis!r}")
    return axis


def _at(axes: tuple[int, ...], places: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes[i] for i in places)


def _size(axes: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return math.prod(shape[a] for a in axes)


_warned: set[tuple[str, tuple[int, ...] | None, str]] = set()


def warn_once(name: str, shape: tuple[int, ...] | None, doubt: str) -> None:
    """Logs what is doubtful in a leaf, or in a pattern, once in a process."""
    if (name, shape, doubt) not in _warned:
        _warned.add((name, shape, doubt))
        of = "" if shape is None else f" of shape {shape}"
        _LOG.warning("%s%s is %s", name, of, doubt)
