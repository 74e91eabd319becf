"""One name for a leaf, whatever wraps it, and what the words of a name mean.

Words are whole components of a name, looked at from the leaf inwards: attention's only
directly before the leaf, those of tables and heads in the last two components.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

# Attributes and indices that wrappers put behind a leaf: `nnx.Variable` and
# `nn.Partitioned`, Equinox's and haliax's named arrays, penzai's.
_WRAPPERS = frozenset({"value", "raw_value", "array", "data_array"})

# Names that leaves have in themselves, whatever they belong to.
KERNELS = frozenset({"kernel", "w", "weight", "weights"})
_TABLES = frozenset({"embedding", "embeddings"})
_LEAVES = KERNELS | _TABLES | {"bias", "scale", "beta", "gamma", "offset", "b"}

# What no product takes: biases, scales, tokens put beside others, Mamba's decay rates.
_VECTOR = re.compile(
    r"(\w+_)?(bias(es)?|scales?|beta|gamma|offset)|cls|a_log|"
    r"(cls|class|dist|distillation|mask|reg|register|pad|sep)_tokens?"
)
_NORM = re.compile(r"\w*norm|(\w+_)?(ln|bn)(_\w)?")
_LAYER = re.compile(r"(\w+_)?(linear|dense|proj(ection)?|conv|fc|mlp|norm)")

_EMBED = (
    r"\w*embed(der|ding|dings)?"
    r"(_(tokens?|positions?|table|inputs?|outputs?|in|out|layer|weights?|kernel|"
    r"lookup))?"
)
_TABLE = re.compile(
    rf"{_EMBED}|(\w+_)?emb(_var)?|wte|wpe|(\w+_)?vocab|(\w+_)?table|codebook|"
    r"relative_attention_bias|rel_pos(_[hw])?|(\w+_)?pos(itional)?_enc(oding)?s?|"
    r"positions|shared|latents|query_tokens"
)
# Layers that are called like tables: of patches, or shared by other layers.
_INPUT_LAYER = re.compile(
    r"(\w+_)?patch(es)?_emb(ed(der|ding|dings)?)?/\w+|"
    r"(shared|positions|latents)/(kernel|w|weights)"
)
_HEAD = re.compile(
    r"(?!pre_|multi_|attn_|attention_)(\w+_)?(head|logits?|logit_?dense|logits_?dense|"
    r"classifier|readout|unembed(ding|der)?)|embed_out"
)
# Heads that their place makes heads: `output.weight` is one at the top of a tree only.
_HEAD_PLACE = re.compile(
    r"((params|model|module)/)*(output/(kernel|w|weight)|fc/weight)|"
    r"(.*/)?((predictions|lm_head)/decoder|classifier/out_proj)/(kernel|weight)"
)
_ATTENTION_IN = re.compile(
    r"(\w+_)?w?(q|k|v|query|key|value|kv|qkv)(_?proj|_b)?(_(w|weight|kernel))?|gating_w"
)
_ATTENTION_OUT = re.compile(r"(\w+_)?w?(o|out)(_?proj)?(_(w|weight|kernel))?|output_w")
# There `wo` and `v` are no attention's, and three axes are those of experts.
_MLP = re.compile(r"expert|moe|mlp|ffn|feed_?forward")
_FUSED = re.compile(r"(\w+_)?w?(kv|qkv)(_?proj)?")
_LORA = re.compile(r"(\w+_)?lora_?(?P<half>[ab])")
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


def words(name: str) -> list[str]:
    """The components of a name, without the numbers behind them: `Conv_0` is conv."""
    return [re.sub(r"(?<=\w)_?\d+$", "", word).lower() for word in name.split("/")]


def owner(name: str) -> str:
    """The word that says what a leaf belongs to: `query` of `attention/query/kernel`.

    The leaf's own name, where that is no common one: `query` of `attention/query`.
    """
    of = words(name)
    return of[-2] if len(of) > 1 and of[-1] in _LEAVES else of[-1]


def _in_mlp(name: str) -> bool:
    """Whether the component before the owner of a leaf is called an MLP or experts."""
    of = words(name)
    before = of[:-2] if len(of) > 1 and of[-1] in _LEAVES else of[:-1]
    return bool(before and _MLP.search(before[-1]))


def is_vector(name: str, layout: str, shape: Sequence[int]) -> bool:
    """Whether a leaf is what biases, scales and tokens are, by its name or its form.

    Args:
      name: its name.
      layout: what a leaf `b` is depends on it.
      shape: its axes without those of stacks.
    """
    word, whose = words(name)[-1], owner(name)
    if word in KERNELS:
        return bool(_NORM.fullmatch(whose))
    if _VECTOR.fullmatch(word) or _NORM.fullmatch(word):
        return True
    if layout == "haiku" and re.fullmatch(r"(\w+_)?b", word):
        return "lora" not in name.lower()
    # A vector with axes of one, to be added to arrays of more axes.
    one = sum(size != 1 for size in shape) <= 1
    return len(shape) > 2 and one and not is_table(name) and not is_head(name)


def is_kernel(name: str) -> bool:
    """Whether a leaf is called as the weight of a layer is."""
    return words(name)[-1] in KERNELS


def _last_two(name: str) -> list[str]:
    """The leaf's own name and that before it, which a layer's name hides."""
    last = words(name)[-2:]
    own = last[-1]
    hides = any(
        pattern.fullmatch(own) for pattern in (_LAYER, _ATTENTION_IN, _ATTENTION_OUT)
    )
    return last[-1:] if hides and own not in _LEAVES else last


def is_head(name: str) -> bool:
    """Whether a leaf is a head, by its last two components or its place."""
    if words(name)[-1] in _TABLES:
        return False
    found = any(_HEAD.fullmatch(word) for word in _last_two(name))
    return found or bool(_HEAD_PLACE.fullmatch(name.lower()))


def is_table(name: str) -> bool:
    """Whether one of the last two components is the name of a table."""
    return any(_TABLE.fullmatch(word) for word in _last_two(name))


def is_input_layer(name: str, rank: int) -> bool:
    """Whether the kernel of what is called a table is a layer of its inputs.

    Args:
      name: the leaf's name.
      rank: its axes without those of stacks.
    """
    if not is_kernel(name):
        return False
    return rank > 2 or bool(_INPUT_LAYER.fullmatch("/".join(words(name)[-2:])))


def is_convolution(name: str) -> bool:
    """Whether the owner of a leaf is called a convolution."""
    return bool(_CONVOLUTION.search(owner(name)))


def is_transposed(name: str) -> bool:
    """Whether the owner of a leaf is called a transposed convolution."""
    return bool(re.search(r"transpose|deconv|upconv|up_conv", owner(name)))


def is_attention_input(name: str) -> bool:
    """Whether the owner of a leaf is a query, key or value projection."""
    return bool(_ATTENTION_IN.fullmatch(owner(name))) and not _in_mlp(name)


def is_fused(name: str) -> bool:
    """Whether the owner of a leaf is a projection of keys and values together."""
    return bool(_FUSED.fullmatch(owner(name)))


def is_attention_output(name: str) -> bool:
    """Whether the owner of a leaf is the output projection of an attention."""
    return bool(_ATTENTION_OUT.fullmatch(owner(name))) and not _in_mlp(name)


def lora_half(name: str) -> str:
    """ "a" or "b" of the two factors of a low-rank adapter, "" of another leaf."""
    found = _LORA.fullmatch(words(name)[-1])
    return found["half"] if found else ""
