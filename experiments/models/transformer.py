"""Transformer blocks, and the decoder made of them; families differ by `Style`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.model import add, kernel, linear, run_stack, stack, table, zeros


class Size(NamedTuple):
    """Width of the residual stream, layers, heads, inner width of the MLP."""

    width: int
    layers: int
    heads: int
    hidden: int


class RMSNorm(nnx.Module):
    """Divides the last axis by its root mean square, and multiplies by a scale."""

    eps = 1e-6

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,)))

    def __call__(self, x):
        """Normalises `(..., width)`, in float32 inside."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))
        return (wide * inverse * scale).astype(x.dtype)


class LayerNorm(RMSNorm):
    """Takes the mean off the last axis first, and adds a bias at the end."""

    eps = 1e-5

    def __init__(self, width: int):
        super().__init__(width)
        self.bias = zeros(width)

    def __call__(self, x):
        """Normalises `(..., width)`, in float32 inside."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        return add(super().__call__(centred), self.bias).astype(x.dtype)


class SwiGLU(nnx.Module):
    """`(silu(x gate) * (x up)) down`, without biases."""

    def __init__(self, size: Size, dtype, rngs: nnx.Rngs):
        self.gate = kernel(rngs.params(), (size.width, size.hidden))
        self.up = kernel(rngs.params(), (size.width, size.hidden))
        scale = 1 / np.sqrt(2 * size.layers)
        self.down = kernel(rngs.params(), (size.hidden, size.width), scale)
        self.dtype = dtype

    def __call__(self, x):
        """Maps `(batch, time, width)` at each place."""
        return linear(jax.nn.silu(linear(x, self.gate)) * linear(x, self.up), self.down)


class GELU(nnx.Module):
    """`gelu(x up + up_bias) down + down_bias`, by GPT-2's tanh approximation."""

    def __init__(self, size: Size, dtype, rngs: nnx.Rngs):
        self.up = kernel(rngs.params(), (size.width, size.hidden))
        scale = 1 / np.sqrt(2 * size.layers)
        self.down = kernel(rngs.params(), (size.hidden, size.width), scale)
        self.up_bias = zeros(size.hidden)
        self.down_bias = zeros(size.width)
        self.dtype = dtype

    def __call__(self, x):
        """Maps `(batch, time, width)` at each place."""
        x = jax.nn.gelu(linear(x, self.up, self.up_bias))
        return linear(x, self.down, self.down_bias)


class Style(NamedTuple):
    """What sets the families apart."""

    norm: type[RMSNorm]
    mlp: type[SwiGLU] | type[GELU]
    rotary: bool = False
    bias: bool = False
    causal: bool = True
    qk_norm: bool = False
    unroll: bool = False


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding, pairing entry `i` of a head with `i + head/2`.

    Args:
      x: `(batch, time, heads, head)`, `head` even.
      base: of the geometric series of wavelengths.

    Returns:
      `x` with each pair turned by `time * base^(-2i/head)`.
    """
    time, half = x.shape[1], x.shape[-1] // 2
    angles = np.outer(np.arange(time), base ** (-np.arange(half) / half))
    cos = np.cos(angles).astype(np.float32)[None, :, None, :]
    sin = np.sin(angles).astype(np.float32)[None, :, None, :]
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [left * cos - right * sin, right * cos + left * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention."""

    def __init__(self, size: Size, style: Style, dtype, rngs: nnx.Rngs):
        square = (size.width, size.width)
        self.query = kernel(rngs.params(), square)
        self.key = kernel(rngs.params(), square)
        self.value = kernel(rngs.params(), square)
        self.out = kernel(rngs.params(), square, 1 / np.sqrt(2 * size.layers))
        for name in ("query", "key", "value", "out"):
            bias = zeros(size.width) if style.bias else None
            setattr(self, f"{name}_bias", bias)
        head = size.width // size.heads
        self.query_norm = RMSNorm(head) if style.qk_norm else None
        self.key_norm = RMSNorm(head) if style.qk_norm else None
        self.heads = size.heads
        self.style = style
        self.dtype = dtype

    def _query_and_key(self, x):
        """As they are multiplied, `(batch, time, heads, head)`."""
        query, key = (
            self._by_head(linear(x, weight, bias))
            for weight, bias in (
                (self.query, self.query_bias),
                (self.key, self.key_bias),
            )
        )
        if self.style.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.style.rotary:
            query, key = rotate(query), rotate(key)
        return query, key

    def _by_head(self, x):
        return x.reshape(*x.shape[:2], self.heads, x.shape[-1] // self.heads)

    def largest_logit(self, x):
        """The largest absolute value under the softmax, a float32 scalar."""
        query, key = (y.astype(jnp.float32) for y in self._query_and_key(x))
        logits = jnp.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
        if self.style.causal:
            seen = np.tri(x.shape[1], dtype=bool)[None, None]
            logits = jnp.where(seen, logits, 0)
        return jnp.max(jnp.abs(logits))

    def __call__(self, x):
        """Mixes `(batch, time, width)` over time."""
        query, key = self._query_and_key(x)
        value = linear(x, self.value, self.value_bias)
        value = self._by_head(value)
        mixed = jax.nn.dot_product_attention(
            query, key, value, is_causal=self.style.causal
        )
        return linear(mixed.reshape(x.shape), self.out, self.out_bias)


class Block(nnx.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, size: Size, style: Style, dtype, rngs: nnx.Rngs):
        self.attention_norm = style.norm(size.width)
        self.attention = Attention(size, style, dtype, rngs)
        self.mlp_norm = style.norm(size.width)
        self.mlp = style.mlp(size, dtype, rngs)

    def __call__(self, x):
        """Maps the residual stream `(batch, time, width)`."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))

    def largest_logit(self, x):
        """That of the attention, given the residual stream."""
        return self.attention.largest_logit(self.attention_norm(x))


class Decoder(nnx.Module):
    """Embedding, stacked blocks, norm, head.

    Initial weights are normal with standard deviation 1/sqrt(inputs); the two matrices
    that write into the residual stream have 1/sqrt(2 layers) of that, and embedding
    rows have unit norm, so that a tied head starts at logits of order one.
    """

    def __init__(
        self, size, style, vocab_size, *, context=None, tied, dtype, remat, rngs
    ):
        self.embed = table(rngs.params(), vocab_size, size.width)
        self.layers = stack(
            lambda rngs: Block(size, style, dtype, rngs), size.layers, rngs
        )
        self.norm = style.norm(size.width)
        head = (size.width, vocab_size)
        self.head = None if tied else kernel(rngs.params(), head)
        learned = context is not None
        self.positions = table(rngs.params(), context, size.width) if learned else None
        self.dtype = dtype
        self.remat = remat
        self.unroll = style.unroll

    def residual(self, tokens):
        """What the first block is given."""
        x = self.embed[...].astype(self.dtype)[tokens]
        if self.positions is not None:
            x += self.positions[None, : tokens.shape[1]].astype(self.dtype)
        return x

    def __call__(self, tokens):
        """Logits `(batch, time, vocabulary)` of tokens `(batch, time)`."""
        x = run_stack(
            self.layers, self.residual(tokens), self.remat, unroll=self.unroll
        )
        return self.output(x)

    def output(self, x):
        """Logits of what the last block gives."""
        head = self.embed[...].T if self.head is None else self.head[...]
        return linear(self.norm(x), head)


def check_heads(size: Size, multiple: int = 1) -> None:
    """Refuses heads that do not share the width evenly.

    Args:
      size: of the model.
      multiple: what the width of a head must be a multiple of.

    Raises:
      ValueError: naming `model.heads`.
    """
    if size.width % (multiple * size.heads):
        of = f"model.width={size.width}" + (f" / {multiple}" if multiple > 1 else "")
        raise ValueError(f"model.heads: given {size.heads}, allowed a divisor of {of}")
