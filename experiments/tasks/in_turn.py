"""Classes that are learned one group after another: what is forgotten, and how."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.data.order import Process, ordered_batches
from experiments.tasks.classification import Classification
from experiments.tasks.cross_entropy import cross_entropy
from optlab.inside.rank import effective_rank


class ClassesInTurn(Classification):
    """Labelled images whose classes come in groups, each for as many steps.

    With digits and two classes each that is 0 and 1, then 2 and 3, and so on; one head
    for all of them. Every evaluation has the accuracy on each group by itself, so that
    a run with `train.eval_every` at the length of a turn has the matrix of accuracies,
    and the effective rank of the last hidden layer. More steps than planned stay with
    the last group.

    References:
      What solutions differ in: https://arxiv.org/abs/2507.12224.
    """

    def __init__(self, config: ml_collections.ConfigDict, classes_each: int = 2):
        """As of `Classification`.

        Args:
          config: the whole config.
          classes_each: classes in a group, a divisor of those of the data.

        Raises:
          ValueError: the groups cannot be made, or there are fewer steps than groups.
        """
        self._each = classes_each
        super().__init__(config)
        count = self._images.classes
        if (
            not isinstance(classes_each, int)
            or classes_each < 1
            or count % classes_each
        ):
            raise ValueError(
                f"classes_each: given {classes_each!r}, allowed a divisor of {count}"
            )
        self._groups = count // classes_each
        if config.train.steps < self._groups:
            raise ValueError(
                f"train.steps: given {config.train.steps}, allowed {self._groups} or "
                f"more, one for each group of {classes_each} classes"
            )
        self._turn = config.train.steps // self._groups
        labels = self._images.train_labels // classes_each
        self._members = [np.flatnonzero(labels == i) for i in range(self._groups)]
        for i, members in enumerate(self._members):
            if not len(members):
                raise ValueError(f"task.data: no training image of group {i}")

    @property
    def groups(self) -> list[str]:
        """The name of each group: its first and its last class."""
        each = self._each
        starts = range(0, self._images.classes, each)
        return [f"{i}_{i + each - 1}" for i in starts]

    def train_iterator(self, seed: int, process: Process | None = None):
        """Endless batches `{"image", "label"}`, each of one group.

        Args:
          seed: decides the order within a group.
          process: whose rows of each batch, by default those of this process.
        """
        if not hasattr(self, "_members"):  # called while the parent looks at the batch
            return super().train_iterator(seed, process)
        size = self._batch_size

        @functools.lru_cache(maxsize=4)
        def order(group: int, epoch: int) -> np.ndarray:
            rng = np.random.default_rng((seed, group, epoch))
            return rng.permutation(self._members[group])

        def example(number: int) -> int:
            group = min(number // size // self._turn, self._groups - 1)
            place = number - group * self._turn * size
            epoch, row = divmod(place, len(self._members[group]))
            return order(group, epoch)[row]

        def gather(numbers: np.ndarray) -> dict[str, np.ndarray]:
            chosen = np.asarray([example(int(number)) for number in numbers])
            images = self._images
            return {
                "image": images.train_images[chosen],
                "label": images.train_labels[chosen],
            }

        return ordered_batches(gather, size, process)

    def eval_metrics(self, params, batch) -> dict[str, jax.Array]:
        """Loss and accuracy of all, the accuracy of each group, the effective rank."""
        images = self._normalized(batch["image"])
        outputs, hidden = self.model.apply(params, images), None
        if hasattr(self.model, "features"):
            hidden = self.model.features(params, images)
        loss, _ = cross_entropy(outputs, batch["label"])
        right = (jnp.argmax(outputs, -1) == batch["label"]).astype(jnp.float32)
        found: dict[str, Any] = {"loss": loss, "accuracy": jnp.mean(right)}
        for i, name in enumerate(self.groups):
            own = batch["label"] // self._each == i
            count = jnp.maximum(jnp.sum(own), 1)
            found[f"accuracy_{name}"] = jnp.sum(jnp.where(own, right, 0)) / count
        if hidden is not None:
            found["effective_rank"] = effective_rank(hidden.reshape(len(hidden), -1))
        return found
