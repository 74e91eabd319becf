"""ResNet-20 and its kin for small images (He et al. 2016, arXiv 1512.03385, 4.2).

Three stages of residual blocks with 16, 32 and 64 channels; a shortcut that changes the
shape takes every second pixel and pads channels with zeros, as the authors' (option A).

Deviation: GroupNorm in place of BatchNorm. The runner's parameters are all trained and
a step is a pure function of them; running statistics would be a second kind of state in
every optimizer, checkpoint and evaluation. Parameter counts stay the same.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.model import (
    Classifier,
    add,
    kernel,
    linear,
    run_stack,
    stack,
    zeros,
)


class Size(NamedTuple):
    """Channels of the first stage, and residual blocks in each of the three."""

    width: int
    layers: int


class GroupNorm(nnx.Module):
    """Normalises each of at most eight groups of channels over pixels."""

    groups = 8

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = zeros(channels)

    def __call__(self, x):
        """Normalises `(batch, height, width, channels)`, in float32 inside."""
        groups = math.gcd(self.groups, x.shape[-1])
        wide = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
        mean = wide.mean((1, 2, 4), keepdims=True)
        centred = wide - mean
        variance = jnp.mean(centred**2, (1, 2, 4), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        return add(normal * self.scale[None, None, None], self.bias).astype(x.dtype)


def convolve(x, weight, stride=1):
    """`(batch, height, width, in)` with `(3, 3, in, out)`, padded to the same size."""
    return jax.lax.conv_general_dilated(
        x,
        weight[...].astype(x.dtype),
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Block(nnx.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        shapes = (3, 3, inputs, outputs), (3, 3, outputs, outputs)
        # He's scale: half of what comes in is cut off by the ReLU before.
        self.conv1 = kernel(rngs.params(), shapes[0], np.sqrt(2))
        self.conv2 = kernel(rngs.params(), shapes[1], np.sqrt(2))
        self.norm1 = GroupNorm(outputs)
        self.norm2 = GroupNorm(outputs)
        self.stride = stride

    def __call__(self, x):
        """Maps `(batch, height, width, in)`, the stride divides height and width."""
        inner = jax.nn.relu(self.norm1(convolve(x, self.conv1, self.stride)))
        inner = self.norm2(convolve(inner, self.conv2))
        shortcut = x[:, :: self.stride, :: self.stride]
        more = inner.shape[-1] - x.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((0, more),))
        return jax.nn.relu(inner + shortcut)


class Stage(nnx.Module):
    """A block that changes the shape, and a stack of those that keep it."""

    def __init__(self, inputs, outputs, stride, layers, rngs):
        self.first = Block(inputs, outputs, stride, rngs)

        def same(rngs):
            return Block(outputs, outputs, 1, rngs)

        self.rest = stack(same, layers - 1, rngs) if layers > 1 else None

    def __call__(self, x, remat):
        """Maps `(batch, height, width, in)`."""
        x = self.first(x)
        if self.rest is None:
            return x
        # On a CPU, XLA takes 13 times as long for a convolution's gradient in a loop.
        return run_stack(self.rest, x, remat, unroll=True)


class Network(nnx.Module):
    """Images to class logits."""

    def __init__(self, size, channels, classes, *, dtype, remat, rngs):
        width = size.width
        self.stem = kernel(rngs.params(), (3, 3, channels, width), np.sqrt(2))
        self.norm = GroupNorm(width)
        self.stage1 = Stage(width, width, 1, size.layers, rngs)
        self.stage2 = Stage(width, 2 * width, 2, size.layers, rngs)
        self.stage3 = Stage(2 * width, 4 * width, 2, size.layers, rngs)
        self.head = kernel(rngs.params(), (4 * width, classes))
        self.head_bias = zeros(classes)
        self.dtype = dtype
        self.remat = remat

    def __call__(self, images):
        """Logits `(batch, classes)` of images `(batch, height, width, channels)`."""
        x = convolve(images.astype(self.dtype), self.stem)
        x = jax.nn.relu(self.norm(x))
        for stage in (self.stage1, self.stage2, self.stage3):
            x = stage(x, self.remat)
        x = x.mean((1, 2))
        return linear(x, self.head, self.head_bias)


# Depth is 6 n + 2: ResNet-20 has n = 3 blocks in a stage. tiny is our own.
SIZES = {
    "tiny": Size(8, 2),
    "20": Size(16, 3),
    "32": Size(16, 5),
    "44": Size(16, 7),
    "56": Size(16, 9),
}


class ResNet(Classifier):
    """The network as pure functions; `layers` is the number of blocks in a stage."""

    sizes = SIZES
    options = ("remat",)
    stacked = (r"/rest/",)
    # The first convolution and the head are to this net what embeddings are to text.
    embeddings = (r"^stem$", r"^head$")

    def module(self, config, classes, shape):
        """The network, of the images' channels."""
        del config
        return functools.partial(Network, self.size, shape[-1], classes)
