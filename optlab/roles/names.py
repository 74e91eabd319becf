"""One name for a leaf, whatever wraps it, and what the words of a name mean.

Words are whole components of a name, looked at from the leaf inwards: attention's only
directly before the leaf, those of tables and heads in the last two components.
"""

import re
from typing import Any

import jax

# Attributes and indices that wrappers put behind a leaf: `nnx.Variable` and
# `nn.Partitioned`, Equinox's and haliax's named arrays, penzai's.
_WRAPPERS = frozenset({"value", "raw_value", "array", "data_array"})

# Names that leaves have in themselves, whatever they belong to.
KERNELS = frozenset({"kernel", "w", "weight", "weights"})
_VECTORS = frozenset({"bias", "scale", "beta", "gamma", "offset", "cls", "cls_token"})
_LEAVES = KERNELS | _VECTORS | {"b", "embedding", "embeddings"}

_EMBED = (
    r"\w*embed(der|ding|dings)?"
    r"(_(tokens?|positions?|table|inputs?|outputs?|in|out|layer|weights?|kernel))?"
)
_TABLE = re.compile(rf"{_EMBED}|(\w+_)?emb|wte|wpe|(\w+_)?vocab|positions|shared")
_HEAD = re.compile(
    r"(?!pre_)(\w+_)?(head|logits?|logit_?dense|logits_?dense|classifier|"
    r"unembed(ding|der)?)"
)
_ATTENTION_IN = re.compile(r"(\w+_)?w?(q|k|v|query|key|value|qkv)(_?proj)?")
_ATTENTION_OUT = re.compile(r"(\w+_)?w?(o|out)(_?proj)?")
_CONVOLUTION = re.compile(r"conv")


def leaf_name(path: Any) -> str:
    """The name of a leaf, `layers/attention/query/kernel`, whatever wraps it.

    The attributes that wrappers add (`value` of `nnx.Variable` and `nn.Partitioned`,
    `raw_value`, `array`, `data_array`) and the index of a wrapper with one leaf come
    off the end. `.` and `/` inside of keys both separate.

    Args:
      path: a key path of `jax.tree_util`.
    """
    keys = tuple(path)
    while len(keys) > 1 and _wraps(keys[-1], keys[-2]):
        keys = keys[:-1]
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    return name.replace(".", "/")


def _wraps(key: Any, before: Any) -> bool:
    """Whether a path's last key is a wrapper's, and not the leaf's own."""
    kinds = jax.tree_util
    if isinstance(key, kinds.GetAttrKey):
        return key.name in _WRAPPERS
    if isinstance(key, kinds.FlattenedIndexKey):
        return key.key == 0
    if isinstance(key, kinds.SequenceKey):
        name = kinds.keystr((before,), simple=True)
        return key.idx == 0 and re.split(r"[./]", name)[-1] in _LEAVES
    return False


def _words(name: str) -> list[str]:
    """The components of a name, without the numbers behind them: `Conv_0` is conv."""
    return [re.sub(r"(?<=\w)_?\d+$", "", word).lower() for word in name.split("/")]


def owner(name: str) -> str:
    """The word that says what a leaf belongs to: `query` of `attention/query/kernel`.

    The leaf's own name, where that is no common one: `query` of `attention/query`.
    """
    words = _words(name)
    return words[-2] if len(words) > 1 and words[-1] in _LEAVES else words[-1]


def is_vector(name: str, layout: str) -> bool:
    """Whether a leaf is called as biases and scales are."""
    word = _words(name)[-1]
    return word in _VECTORS or (layout == "haiku" and word == "b")


def is_kernel(name: str) -> bool:
    """Whether a leaf is called as the weight of a layer is."""
    return _words(name)[-1] in KERNELS


def is_head(name: str) -> bool:
    """Whether one of the last two components is the name of a head."""
    return any(_HEAD.fullmatch(word) for word in _words(name)[-2:])


def is_table(name: str) -> bool:
    """Whether one of the last two components is the name of a table."""
    return any(_TABLE.fullmatch(word) for word in _words(name)[-2:])


def is_convolution(name: str) -> bool:
    """Whether the owner of a leaf is called a convolution."""
    return bool(_CONVOLUTION.search(owner(name)))


def is_attention_input(name: str) -> bool:
    """Whether the owner of a leaf is a query, key or value projection."""
    return bool(_ATTENTION_IN.fullmatch(owner(name)))


def is_attention_output(name: str) -> bool:
    """Whether the owner of a leaf is the output projection of an attention."""
    return bool(_ATTENTION_OUT.fullmatch(owner(name)))
