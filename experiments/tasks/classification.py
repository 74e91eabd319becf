"""Which of a few classes an image belongs to."""

import jax
import jax.numpy as jnp
import ml_collections

import optlab
from experiments import data, models
from experiments.data.order import Process
from experiments.tasks import logits
from experiments.tasks.cross_entropy import cross_entropy, with_z_loss

# He et al. 2016, 4.2: four pixels of zeros on each side, a crop of the old size.
_PADDING = 4


def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Crops each image at random out of its padded self, and mirrors every second.

    Args:
      images: `(batch, height, width, channels)`.
      key: decides the crops, one per image.

    Returns:
      As many images of the same size.
    """
    crop_key, flip_key = jax.random.split(key)
    padding = (_PADDING, _PADDING)
    padded = jnp.pad(images, ((0, 0), padding, padding, (0, 0)))
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * _PADDING + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    flips = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
    cropped = jax.vmap(crop)(padded, corners)
    return jnp.where(flips, cropped[:, :, ::-1], cropped)


class Classification:
    """Mean cross-entropy of labelled images, in nats.

    Channels are normalised by the training images' mean and deviation. An image counts
    as one token in the records.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        self._images = data.load(config.task, "classification")
        shape = self._images.train_images.shape[1:]
        self.model = models.build(config, "classification", self._images.classes, shape)
        self.roles = optlab.default_roles(
            stacked=self.model.stacked, embeddings=self.model.embeddings
        )
        self.digest, self.files = self._images.digest, {}
        self.tokens_per_batch = config.train.batch_size
        self._z_loss = config.model.z_loss
        self._augment = config.task.augment
        self._batch_size = config.train.batch_size
        self._mean, self._deviation = self._images.statistics()
        self.train_iterator(config.seed)  # refuses now what it refuses

    def init(self, key: jax.Array) -> dict:
        """The model's parameters, as a plain nested dictionary."""
        return self.model.init(key)

    def _losses(self, params, images, labels):
        outputs = self.model.apply(params, images)
        loss, normalizer = cross_entropy(outputs, labels)
        accuracy = jnp.mean((jnp.argmax(outputs, -1) == labels).astype(jnp.float32))
        return loss, normalizer, accuracy

    def _normalized(self, images):
        mean, deviation = (x[None, None, None] for x in (self._mean, self._deviation))
        return (images.astype(jnp.float32) - mean) / deviation

    def loss(self, params, batch, key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss to differentiate, and scalars that go into the metrics.

        Args:
          params: from `init`.
          batch: `image` `(batch, height, width, channels)` uint8, `label` `(batch,)`.
          key: for the augmentation, if there is one.

        Returns:
          Mean cross-entropy with the z-loss, and `accuracy` (a share of 1).
        """
        images = self._normalized(batch["image"])
        if self._augment:
            images = augment(images, key)
        loss, normalizer, accuracy = self._losses(params, images, batch["label"])
        loss, parts = with_z_loss(loss, normalizer, self._z_loss)
        return loss, parts | {"accuracy": accuracy}

    def eval_metrics(self, params, batch) -> dict[str, jax.Array]:
        """`loss` and `accuracy` of one evaluation batch."""
        images = self._normalized(batch["image"])
        loss, _, accuracy = self._losses(params, images, batch["label"])
        return {"loss": loss, "accuracy": accuracy}

    def largest_logits(self, params, batch) -> dict[str, dict[str, jax.Array]]:
        """Those of `logits.largest_logits` for a batch to train on."""
        return logits.largest_logits(
            self.model, params, self._normalized(batch["image"])
        )

    def train_iterator(self, seed: int, process: Process | None = None):
        """Endless batches `{"image", "label"}`; `get_state`, `set_state` resume.

        Args:
          seed: decides the order.
          process: whose rows of each batch, by default those of this process.
        """
        return self._images.train_batches(self._batch_size, seed, process)

    def eval_batches(self) -> list[dict]:
        """All validation images, in batches of one size."""
        return self._images.eval_batches()
