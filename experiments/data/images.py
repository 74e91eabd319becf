"""Labelled images at hand: what a classification task is trained on."""

import dataclasses

import grain
import numpy as np

from experiments.data.digests import digest_of
from experiments.data.order import Process, shuffled_batches

_EVAL_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Images:
    """Images `(n, height, width, channels)` uint8, labels `(n,)` int32.

    `digest` is a hash of the contents, made of the arrays if none is given.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    classes: int
    digest: str = ""

    def __post_init__(self):
        train = self.train_images, self.train_labels
        validation = self.validation_images, self.validation_labels
        for images, labels in (train, validation):
            if images.ndim != 4 or labels.shape != images.shape[:1] or not labels.size:
                raise ValueError(
                    f"task.data: images {images.shape} and labels {labels.shape}, "
                    "allowed (n, height, width, channels) and (n,), n above 0"
                )
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(
                    f"task.data: labels from {labels.min()} to {labels.max()}, allowed "
                    f"0 to {self.classes - 1}"
                )
        made = self.digest or digest_of(*train, *validation)
        object.__setattr__(self, "digest", made)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel of the training images."""
        axes = (0, 1, 2)
        mean = self.train_images.mean(axes, dtype=np.float64)
        deviation = self.train_images.std(axes, dtype=np.float64)
        return mean.astype(np.float32), deviation.astype(np.float32)

    def train_batches(
        self, batch_size: int, seed: int, process: Process | None = None
    ) -> grain.DatasetIterator:
        """Endless batches `{"image", "label"}`, each image once per epoch.

        Args:
          batch_size: images in a batch of all processes.
          seed: decides the order.
          process: whose rows to read, by default those of the process that asks.
        """

        def gather(numbers):
            return {
                "image": self.train_images[numbers],
                "label": self.train_labels[numbers],
            }

        count = len(self.train_labels)
        return shuffled_batches(count, gather, batch_size, seed, process)

    def eval_batches(self) -> list[dict[str, np.ndarray]]:
        """The validation images in batches of one size; a remainder is left out."""
        count = len(self.validation_labels)
        size = min(count, _EVAL_BATCH)
        return [
            {
                "image": self.validation_images[start : start + size],
                "label": self.validation_labels[start : start + size],
            }
            for start in range(0, count - size + 1, size)
        ]
