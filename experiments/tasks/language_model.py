"""Next-token prediction on a corpus of tokens."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import optlab
from experiments.data import CORPORA, windows
from experiments.models import MODELS

_EVAL_BATCH = 32


class LanguageModel:
    """Predicts each token of a window from those before it; nats per token.

    With `z_loss`, `z_loss * mean(logsumexp(logits)^2)` is added in training only.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        corpus = CORPORA[config.task.data]()
        self.model = MODELS[config.model.name](config.model, corpus.vocab_size)
        self.roles = optlab.default_roles(
            stacked=self.model.stacked, embeddings=self.model.embeddings
        )
        self.digest = corpus.digest
        self.tokens_per_batch = config.train.batch_size * config.task.context
        self._corpus = corpus
        self._z_loss = config.model.z_loss
        self._length = config.task.context + 1
        self._batch_size = config.train.batch_size
        self._eval_windows = config.task.eval_windows
        windows.Windows(corpus.validation, self._length)  # refuses too long a context

    def init(self, key: jax.Array) -> dict:
        """The model's parameters, as a plain nested dictionary."""
        return self.model.init(key)

    def _losses(self, params, batch):
        logits = self.model.apply(params, batch[:, :-1]).astype(jnp.float32)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        targets = batch[:, 1:].astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jnp.mean(normalizer - chosen), normalizer

    def loss(self, params, batch, key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss to differentiate, and scalars that go into the metrics.

        Args:
          params: from `init`.
          batch: `(batch, context + 1)` token numbers.
          key: unused, since this model has no dropout.

        Returns:
          Mean cross-entropy in nats per token with the z-loss, and the parts.
        """
        del key
        cross_entropy, normalizer = self._losses(params, batch)
        if not self._z_loss:
            return cross_entropy, {}
        z_loss = self._z_loss * jnp.mean(jnp.square(normalizer))
        return cross_entropy + z_loss, {"z_loss": z_loss}

    def eval_loss(self, params, batch) -> jax.Array:
        """Mean cross-entropy of one evaluation batch, in nats per token."""
        return self._losses(params, batch)[0]

    def train_iterator(self, seed: int):
        """Endless batches `(batch, context + 1)`; `get_state`, `set_state` resume."""
        return windows.random_batches(
            self._corpus.train, self._length, self._batch_size, seed
        )

    def eval_batches(self) -> list[np.ndarray]:
        """The fixed validation windows."""
        return windows.even_batches(
            self._corpus.validation, self._length, _EVAL_BATCH, self._eval_windows
        )
