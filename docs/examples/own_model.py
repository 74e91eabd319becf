"""Own data, own model and own optimizer: rings of points, a small network, signs."""

import itertools

import numpy as np
import optax
from flax import nnx

import optlab
from experiments import config as configs
from experiments import data, models


def rings(*, points: int = 2000, noise: float = 0.1):
    """Three rings around each other, as images of one row and two columns.

    Args:
      points: how many there are; a fifth of them validates.
      noise: standard deviation of the radius.
    """
    draw = np.random.default_rng(0)
    labels, angle = draw.integers(0, 3, points), draw.uniform(0, 6.28, points)
    radius = labels + draw.normal(1, noise, points)
    xy = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    x, y, cut = xy.reshape(-1, 1, 2, 1).astype(np.float32), labels, points // 5
    return data.Images(x[cut:], y[cut:], x[:cut], y[:cut], classes=3)


class Network(nnx.Module):
    """Images to logits of the classes."""

    def __init__(self, classes, shape, *, width: int = 32, depth: int = 2, rngs):
        sizes = itertools.pairwise([np.prod(shape), *[width] * depth, classes])
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in sizes])

    def __call__(self, images):  # noqa: D102
        x = self.layers[0](images.reshape(len(images), -1))
        for layer in self.layers[1:]:
            x = layer(nnx.relu(x))
        return x


def sign_descent(learning_rate, *, momentum: float = 0.9, **options):
    """The sign of the momentum; `options` go to `optax.trace`, such as `nesterov`."""
    direction = optax.chain(optax.trace(momentum, **options), optax.scale_by_sign())
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


data.register("rings", rings, task="classification")
models.register("network", Network, task="classification")
optlab.register("sign_descent", sign_descent)


def get_config():  # noqa: D103
    config = configs.base()
    config.task.update(name="classification", data="rings")
    config.model.name, config.optimizer.name = "network", "sign_descent"
    config.optimizer.update(learning_rate=1e-2, weight_decay=0.0)
    config.train.update(steps=300, batch_size=64, eval_every=100)
    return config
