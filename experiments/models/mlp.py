"""A multilayer perceptron with ReLU on flattened images."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.models.model import Classifier, kernel, linear, run_stack, stack, zeros


class Size(NamedTuple):
    """Width, and number of the hidden layers that map it to itself."""

    width: int
    layers: int


class Layer(nnx.Module):
    """`relu(x kernel + bias)`."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = kernel(rngs.params(), (inputs, outputs), np.sqrt(2))
        self.bias = zeros(outputs)

    def __call__(self, x):
        """Maps `(batch, inputs)`."""
        return jax.nn.relu(linear(x, self.kernel, self.bias))


class Perceptron(nnx.Module):
    """Images to class logits."""

    def __init__(self, size, inputs, classes, *, dtype, remat, rngs):
        self.embed = Layer(inputs, size.width, rngs)
        self.layers = stack(
            lambda rngs: Layer(size.width, size.width, rngs), size.layers, rngs
        )
        self.head = kernel(rngs.params(), (size.width, classes))
        self.head_bias = zeros(classes)
        self.dtype = dtype
        self.remat = remat

    def features(self, images):
        """The last hidden layer, `(batch, width)`."""
        x = self.embed(images.reshape(len(images), -1).astype(self.dtype))
        return run_stack(self.layers, x, self.remat)

    def __call__(self, images):
        """Logits `(batch, classes)` of images `(batch, height, width, channels)`."""
        x = self.features(images)
        return linear(x, self.head, self.head_bias)


SIZES = {"tiny": Size(64, 2), "small": Size(256, 3)}


class MLP(Classifier):
    """The perceptron as pure functions."""

    sizes = SIZES
    options = ("remat",)
    stacked = (r"^layers/",)

    def module(self, config, classes, shape):
        """The perceptron, of the pixels in a row."""
        del config
        return functools.partial(Perceptron, self.size, math.prod(shape), classes)
