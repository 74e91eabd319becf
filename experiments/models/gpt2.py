"""GPT-2: LayerNorm, learned positions, GELU, biases, a head tied to the embedding."""

import functools

import jax.numpy as jnp
import ml_collections

from experiments.models.model import Model
from experiments.models.transformer import (
    GELU,
    Decoder,
    LayerNorm,
    Size,
    Style,
    check_heads,
)

# Radford et al. 2019, table 2; the released models, 124M to 1558M parameters.
SIZES = {
    "tiny": Size(128, 4, 4, 512),
    "small": Size(768, 12, 12, 3072),
    "medium": Size(1024, 24, 16, 4096),
    "large": Size(1280, 36, 20, 5120),
    "xl": Size(1600, 48, 25, 6400),
}


class GPT2(Model):
    """The decoder as pure functions; the head is tied unless `tied` is set to False."""

    sizes = SIZES
    options = ("tied", "qk_norm", "remat", "unroll")
    stacked = (r"^layers/",)

    def __init__(
        self, config: ml_collections.ConfigDict, vocab_size: int, context: int
    ):
        """Builds the model's structure, and no array.

        Args:
          config: the `model` part of a config; `width`, `layers`, `heads` and `hidden`
            replace those of `size` where they are not None.
          vocab_size: number of tokens.
          context: most tokens in a window, each place has its embedding.

        Raises:
          ValueError: if the heads do not fit the width.
        """
        self.size = self.sized(config)
        check_heads(self.size)
        super().__init__(
            functools.partial(
                Decoder,
                self.size,
                Style(
                    *(LayerNorm, GELU),
                    bias=True,
                    qk_norm=config.qk_norm,
                    unroll=config.unroll,
                ),
                vocab_size,
                context=context,
                tied=config.tied is not False,
                dtype=jnp.dtype(config.dtype),
                remat=config.remat,
            )
        )
