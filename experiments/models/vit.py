"""A small vision transformer: patches, learned positions, GPT-2's blocks, mean pool."""

import functools

from flax import nnx

from experiments.models.model import (
    Classifier,
    kernel,
    linear,
    run_stack,
    stack,
    table,
    zeros,
)
from experiments.models.transformer import (
    GELU,
    Block,
    LayerNorm,
    Size,
    Style,
    check_heads,
)

# Patches along a side of the image: 4 by 4 pixels of CIFAR-10's 32 by 32.
_GRID = 8


class Encoder(nnx.Module):
    """Patches to class logits."""

    def __init__(self, size, style, shape, classes, *, dtype, remat, rngs):
        height, width, channels = shape
        patch = (height // _GRID) * (width // _GRID) * channels
        self.embed = kernel(rngs.params(), (patch, size.width))
        self.embed_bias = zeros(size.width)
        self.positions = table(rngs.params(), _GRID**2, size.width)
        self.layers = stack(
            lambda rngs: Block(size, style, dtype, rngs), size.layers, rngs
        )
        self.norm = style.norm(size.width)
        self.head = kernel(rngs.params(), (size.width, classes))
        self.head_bias = zeros(classes)
        self.dtype = dtype
        self.remat = remat
        self.unroll = style.unroll

    def residual(self, images):
        """What the first block is given."""
        batch, height, width, channels = images.shape
        grid = (batch, _GRID, height // _GRID, _GRID, width // _GRID, channels)
        patches = images.reshape(grid).transpose(0, 1, 3, 2, 4, 5)
        x = patches.reshape(batch, _GRID**2, -1).astype(self.dtype)
        x = linear(x, self.embed, self.embed_bias)
        return x + self.positions[None].astype(self.dtype)

    def features(self, images):
        """The last hidden layer, `(batch, width)`."""
        return self._pooled(self._run(images))

    def __call__(self, images):
        """Logits `(batch, classes)` of images `(batch, height, width, channels)`."""
        return self.output(self._run(images))

    def output(self, x):
        """Logits of what the last block gives."""
        return linear(self._pooled(x), self.head, self.head_bias)

    def _run(self, images):
        x = self.residual(images)
        return run_stack(self.layers, x, self.remat, unroll=self.unroll)

    def _pooled(self, x):
        return self.norm(x).mean(1)


# ti and s have DeiT's widths (arXiv 2012.12877, table 1); tiny is our own.
SIZES = {
    "tiny": Size(64, 4, 4, 256),
    "ti": Size(192, 12, 3, 768),
    "s": Size(384, 12, 6, 1536),
}


class ViT(Classifier):
    """The encoder as pure functions."""

    sizes = SIZES
    options = ("qk_norm", "remat", "unroll")
    stacked = (r"^layers/",)

    def module(self, config, classes, shape):
        """The encoder, of images whose sides are multiples of 8."""
        check_heads(self.size)
        if shape[0] % _GRID or shape[1] % _GRID:
            raise ValueError(
                f"model.name: vit takes images whose sides are multiples of {_GRID}, "
                f"not {shape[0]} by {shape[1]}"
            )
        style = Style(
            *(LayerNorm, GELU),
            bias=True,
            causal=False,
            qk_norm=config.qk_norm,
            unroll=config.unroll,
        )
        return functools.partial(Encoder, self.size, style, shape, classes)
