"""A decoder-only transformer as LLaMA has it: RMSNorm, rotary positions, SwiGLU.

Layers are stacked along a first axis and scanned, so that compilation does not grow
with depth and a matrix optimizer sees one stack per kind of matrix.

Initial weights are normal with standard deviation 1/sqrt(inputs); the two matrices that
write into the residual stream have 1/sqrt(2 layers) of that, and embedding rows have
unit norm, so that a tied head starts at logits of order one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx


class Size(NamedTuple):
    """Width of the residual stream, layers, heads, inner width of the SwiGLU."""

    width: int
    layers: int
    heads: int
    hidden: int


# 60M to 1B are GaLore's LLaMA sizes (arXiv 2403.03507, table 5), which SPAM and COSMOS
# train too; 9M and 20M are the smaller ones of that family; tiny is our own.
SIZES = {
    "tiny": Size(128, 4, 4, 344),
    "9M": Size(128, 4, 4, 352),
    "20M": Size(256, 4, 4, 688),
    "60M": Size(512, 8, 8, 1376),
    "130M": Size(768, 12, 12, 2048),
    "350M": Size(1024, 24, 16, 2736),
    "1B": Size(2048, 24, 32, 5461),
}
_NORM_EPS = 1e-6


def _kernel(key, shape, scale=1.0):
    """A `(inputs, outputs)` matrix of standard deviation `scale / sqrt(inputs)`."""
    return nnx.Param(jax.random.normal(key, shape) * (scale / np.sqrt(shape[0])))


class RMSNorm(nnx.Module):
    """Divides the last axis by its root mean square, and multiplies by a scale."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,)))

    def __call__(self, x):
        """Normalises `(..., width)`, in float32 inside."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + _NORM_EPS)
        scale = jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))
        return (wide * inverse * scale).astype(x.dtype)


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
    """Causal self-attention with rotary positions."""

    def __init__(self, size: Size, qk_norm: bool, dtype, rngs: nnx.Rngs):
        square = (size.width, size.width)
        self.query = _kernel(rngs.params(), square)
        self.key = _kernel(rngs.params(), square)
        self.value = _kernel(rngs.params(), square)
        self.out = _kernel(rngs.params(), square, 1 / np.sqrt(2 * size.layers))
        self.query_norm = RMSNorm(size.width // size.heads) if qk_norm else None
        self.key_norm = RMSNorm(size.width // size.heads) if qk_norm else None
        self.heads = size.heads
        self.dtype = dtype

    def __call__(self, x):
        """Mixes `(batch, time, width)` over time."""
        by_head = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        query, key, value = (
            (x @ kernel[...].astype(self.dtype)).reshape(by_head)
            for kernel in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        mixed = jax.nn.dot_product_attention(
            rotate(query), rotate(key), value, is_causal=True
        )
        return mixed.reshape(x.shape) @ self.out[...].astype(self.dtype)


class SwiGLU(nnx.Module):
    """`(silu(x gate) * (x up)) down`."""

    def __init__(self, size: Size, dtype, rngs: nnx.Rngs):
        self.gate = _kernel(rngs.params(), (size.width, size.hidden))
        self.up = _kernel(rngs.params(), (size.width, size.hidden))
        scale = 1 / np.sqrt(2 * size.layers)
        self.down = _kernel(rngs.params(), (size.hidden, size.width), scale)
        self.dtype = dtype

    def __call__(self, x):
        """Maps `(batch, time, width)` at each place."""
        gate, up, down = (
            kernel[...].astype(self.dtype) for kernel in (self.gate, self.up, self.down)
        )
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down


class Block(nnx.Module):
    """Attention and SwiGLU, each on a normalised copy of the residual stream."""

    def __init__(self, size: Size, qk_norm: bool, dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(size.width)
        self.attention = Attention(size, qk_norm, dtype, rngs)
        self.mlp_norm = RMSNorm(size.width)
        self.mlp = SwiGLU(size, dtype, rngs)

    def __call__(self, x):
        """Maps the residual stream `(batch, time, width)`."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nnx.Module):
    """Embedding, stacked blocks, norm, head."""

    def __init__(self, size, vocab_size, *, tied, qk_norm, dtype, remat, rngs):
        # Drawn as the head's transpose: rows of unit norm.
        self.embed = nnx.Param(
            jax.random.normal(rngs.params(), (vocab_size, size.width))
            / np.sqrt(size.width)
        )

        @nnx.split_rngs(splits=size.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs):
            return Block(size, qk_norm, dtype, rngs)

        self.layers = blocks(rngs)
        self.norm = RMSNorm(size.width)
        head = (size.width, vocab_size)
        self.head = None if tied else _kernel(rngs.params(), head)
        self.dtype = dtype
        self.remat = remat

    def __call__(self, tokens):
        """Logits `(batch, time, vocabulary)` of tokens `(batch, time)`."""

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            run = nnx.remat(Block.__call__) if self.remat else Block.__call__
            return run(block, x)

        x = self.embed[...].astype(self.dtype)[tokens]
        x = self.norm(forward(x, self.layers))
        head = self.embed[...].T if self.head is None else self.head[...]
        return x @ head.astype(self.dtype)


class Llama:
    """The decoder as pure functions of a plain nested dictionary of float32 arrays."""

    # What `optlab.default_roles` needs to know of the parameter paths.
    stacked = (r"^layers/",)
    embeddings = (r"^embed$", r"^head$")

    def __init__(self, config: ml_collections.ConfigDict, vocab_size: int):
        """Builds the model's structure, and no array.

        Args:
          config: the `model` part of a config; `width`, `layers`, `heads` and `hidden`
            replace those of `size` where they are not None.
          vocab_size: number of tokens.

        Raises:
          ValueError: if the heads do not fit the width.
        """
        given = {name: config[name] for name in Size._fields}
        size = SIZES[config.size]._replace(
            **{name: value for name, value in given.items() if value is not None}
        )
        if size.width % (2 * size.heads):
            raise ValueError(
                f"model.heads: given {size.heads}, allowed a number whose double "
                f"divides model.width={size.width} (heads have an even size)"
            )
        self.size = size
        self._decoder = functools.partial(
            Decoder,
            size,
            vocab_size,
            tied=config.tied,
            qk_norm=config.qk_norm,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
        )
        abstract = nnx.eval_shape(lambda: self._decoder(rngs=nnx.Rngs(params=0)))
        self._graph = nnx.graphdef(abstract)

    def init(self, key: jax.Array) -> dict:
        """Draws the parameters from `key`."""
        return nnx.to_pure_dict(nnx.state(self._decoder(rngs=nnx.Rngs(params=key))))

    def apply(self, params: dict, tokens: jax.Array) -> jax.Array:
        """Logits `(batch, time, vocabulary)` of tokens `(batch, time)`."""
        return nnx.merge(self._graph, params)(tokens)
