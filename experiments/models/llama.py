"""A decoder-only transformer as LLaMA has it: RMSNorm, rotary positions, SwiGLU."""

import functools

import jax.numpy as jnp
import ml_collections

from experiments.models.model import Model
from experiments.models.transformer import (
    Decoder,
    RMSNorm,
    Size,
    Style,
    SwiGLU,
    check_heads,
)

# 60M to 1B are GaLore's LLaMA sizes (arXiv 2403.03507, table 5), which SPAM and
# COSMOS train too; 9M and 20M are the smaller ones of that family; tiny is our own.
SIZES = {
    "tiny": Size(128, 4, 4, 344),
    "9M": Size(128, 4, 4, 352),
    "20M": Size(256, 4, 4, 688),
    "60M": Size(512, 8, 8, 1376),
    "130M": Size(768, 12, 12, 2048),
    "350M": Size(1024, 24, 16, 2736),
    "1B": Size(2048, 24, 32, 5461),
}


class Llama(Model):
    """The decoder as pure functions; the head is untied unless `tied` is set."""

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
          context: most tokens in a window; rotary positions set no limit.

        Raises:
          ValueError: if the heads do not fit the width.
        """
        del context
        self.size = self.sized(config)
        check_heads(self.size, multiple=2)  # rotation pairs the entries of a head
        super().__init__(
            functools.partial(
                Decoder,
                self.size,
                Style(
                    *(RMSNorm, SwiGLU),
                    rotary=True,
                    qk_norm=config.qk_norm,
                    unroll=config.unroll,
                ),
                vocab_size,
                tied=bool(config.tied),
                dtype=jnp.dtype(config.dtype),
                remat=config.remat,
            )
        )
