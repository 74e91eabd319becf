"""Gradients made worse on purpose, to see which methods stand it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Pareto's index: the outliers have a mean, and no variance.
_TAIL = 2.0


class Faults(NamedTuple):
    """What is done to the gradients, before they are clipped.

    Attributes:
      spike_every: steps from one gradient that is made too large to the next; 0: none.
      spike_scale: what it is multiplied by.
      outliers: share of the elements that an outlier is added to, at every step.
      outlier_scale: the least size of an outlier, by the leaf's root mean square.
    """

    spike_every: int = 0
    spike_scale: float = 1000.0
    outliers: float = 0.0
    outlier_scale: float = 30.0

    def of_step(
        self, grads: optax.Updates, key: jax.Array, step: jax.Array
    ) -> optax.Updates:
        """The gradients of a step with its faults.

        Args:
          grads: any tree.
          key: of the step, so that a run that goes on has the same outliers.
          step: how many steps were made before.
        """
        if self.outliers:
            leaves, structure = jax.tree.flatten(grads)
            keys = jax.random.split(key, len(leaves))
            made = [self._with_outliers(*x) for x in zip(leaves, keys, strict=True)]
            grads = jax.tree.unflatten(structure, made)
        if self.spike_every:
            spiked = (step + 1) % self.spike_every == 0
            factor = jnp.where(spiked, jnp.float32(self.spike_scale), 1.0)
            grads = scaled(grads, factor)
        return grads

    def _with_outliers(self, leaf: jax.Array, key: jax.Array) -> jax.Array:
        """A leaf with outliers of random places, signs and sizes.

        One number decides all three of an element: its sign, whether it lies below the
        share, and where there, which is the share of Pareto's tail above the outlier.
        """
        place = jax.random.uniform(key, leaf.shape, jnp.float32, -1.0, 1.0)
        share = jnp.maximum(jnp.abs(place) / self.outliers, 2.0**-24)
        rms = jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32))))
        size = self.outlier_scale * rms * share ** (-1 / _TAIL)
        added = jnp.where(share < 1, jnp.sign(place) * size, 0.0)
        return leaf + added.astype(leaf.dtype)


NONE = Faults()


def scaled(tree: optax.Updates, factor: jax.Array) -> optax.Updates:
    """The tree times a number, each leaf in its dtype."""
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), tree)
