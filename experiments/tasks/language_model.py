"""Next-token prediction on a corpus of tokens."""

import jax
import ml_collections
import numpy as np

import optlab
from experiments import data, models
from experiments.data.order import Process
from experiments.tasks import logits
from experiments.tasks.cross_entropy import cross_entropy, with_z_loss

_EVAL_BATCH = 32


class LanguageModel:
    """Predicts each token of a window from those before it; nats per token.

    With `z_loss`, `z_loss * mean(logsumexp(logits)^2)` is added in training only.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        if config.task.augment:
            raise ValueError(
                "task.augment: given True, task.name=language_model has none"
            )
        corpus = data.load(config.task, "language_model")
        self.model = models.build(
            config, "language_model", corpus.vocab_size, config.task.context
        )
        self.roles = optlab.default_roles(
            stacked=self.model.stacked, embeddings=self.model.embeddings
        )
        self.digest, self.files = corpus.digest, corpus.files
        self.tokens_per_batch = config.train.batch_size * config.task.context
        self._corpus = corpus
        self._z_loss = config.model.z_loss
        self._length = config.task.context + 1
        self._batch_size = config.train.batch_size
        self._evaluation = corpus.eval_batches(
            self._length, _EVAL_BATCH, config.task.eval_windows
        )
        # What it refuses, it refuses now: too long a context, too odd a batch.
        self.train_iterator(config.seed)

    def init(self, key: jax.Array) -> dict:
        """The model's parameters, as a plain nested dictionary."""
        return self.model.init(key)

    def _losses(self, params, batch):
        return cross_entropy(self.model.apply(params, batch[:, :-1]), batch[:, 1:])

    def loss(self, params, batch, key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss to differentiate, and scalars that go into the metrics.

        Args:
          params: from `init`.
          batch: `(batch, context + 1)` token numbers.
          key: unused, since these models have no dropout.

        Returns:
          Mean cross-entropy in nats per token with the z-loss, and the parts.
        """
        del key
        return with_z_loss(*self._losses(params, batch), self._z_loss)

    def eval_metrics(self, params, batch) -> dict[str, jax.Array]:
        """`loss` of one evaluation batch: mean cross-entropy in nats per token."""
        return {"loss": self._losses(params, batch)[0]}

    def largest_logits(self, params, batch) -> dict[str, dict[str, jax.Array]]:
        """Those of `logits.largest_logits` for a batch to train on."""
        return logits.largest_logits(self.model, params, batch[:, :-1])

    def train_iterator(self, seed: int, process: Process | None = None):
        """Endless batches `(rows, context + 1)`; `get_state`, `set_state` resume.

        Args:
          seed: decides the order.
          process: whose rows of each batch, by default those of this process.
        """
        return self._corpus.train_batches(self._length, self._batch_size, seed, process)

    def eval_batches(self) -> list[np.ndarray]:
        """The fixed validation windows."""
        return self._evaluation
