"""What the model families share: pure functions, sizes, stacks of equal blocks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

# Fields of `model` that replace those of the size, and that switch something on.
SIZES = ("width", "layers", "heads", "hidden")
OPTIONS = ("tied", "qk_norm", "remat", "unroll")


class Model:
    """A flax module as pure functions of a plain nested dictionary of float32 arrays.

    A family says by `stacked` and `embeddings` what `optlab.default_roles` needs to
    know of its parameter paths, by `sizes` what `model.size` may be, and by `options`
    which switches of the config it has.
    """

    sizes: Mapping[str, Any]
    options: Sequence[str] = ()
    stacked: Sequence[str] = ()
    embeddings: Sequence[str] | None = None

    def __init__(self, make: Callable[..., nnx.Module]):
        """Builds the structure, and no array.

        Args:
          make: makes the module, given `rngs`.

        Raises:
          ValueError: if the module holds anything but parameters.
        """
        self._make = make
        abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=0)))
        _check_variables(abstract)
        self._graph = nnx.graphdef(abstract)

    @classmethod
    def sized(cls, config: ml_collections.ConfigDict) -> Any:
        """The size that a config names, with the fields that it replaces.

        Raises:
          ValueError: if the family has no such size, field or switch.
        """
        if config.size not in cls.sizes:
            raise ValueError(
                f"model.size: given {config.size!r}, allowed {', '.join(cls.sizes)} "
                f"with model.name={config.name}"
            )
        size = cls.sizes[config.size]
        given = {name: config[name] for name in SIZES if config[name] is not None}
        switched = {name: config[name] for name in OPTIONS if config[name]}
        for name, value in (given | switched).items():
            if name not in (*size._fields, *cls.options):
                raise ValueError(
                    f"model.{name}: given {value}, model.name={config.name} has none"
                )
        return size._replace(**given)

    def init(self, key: jax.Array) -> dict:
        """Draws the parameters from `key`."""
        module = self._make(rngs=nnx.Rngs(params=key))
        return _with_words(nnx.to_pure_dict(nnx.state(module)))

    def apply(self, params: dict, inputs: jax.Array) -> jax.Array:
        """The module's output."""
        return self._module(params)(inputs)

    def with_attention_logits(
        self, params: dict, inputs: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """The output, and the largest absolute logit under each layer's softmax.

        The latter is `(layers,)`, and None for a model without attention.
        """
        module = self._module(params)
        if not hasattr(module, "residual"):
            return module(inputs), None
        x, largest = run_and_look(module.layers, module.residual(inputs))
        return module.output(x), largest

    def _module(self, params: dict) -> nnx.Module:
        # As words, the tenth layer of a list would come before the second.
        return nnx.merge(self._graph, nnx.restore_int_paths(params))


def _check_variables(abstract: nnx.Module) -> None:
    """Refuses running statistics, dropout's keys and all else that no step trains."""
    for path, variable in nnx.to_flat_state(nnx.state(abstract)):
        kind = type(variable)
        if not issubclass(kind, nnx.Param):
            raise ValueError(
                f"model.name: {'.'.join(map(str, path))} is a {kind.__name__}, allowed "
                "nnx.Param alone (no running statistics, no dropout)"
            )


def _with_words(tree: Any) -> Any:
    """The tree with words as keys, which checkpoints keep, and no numbers."""
    if not isinstance(tree, Mapping):
        return tree
    return {str(name): _with_words(inner) for name, inner in tree.items()}


class Classifier(Model):
    """Images to logits of classes; a family's `module` makes the flax module."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        classes: int,
        shape: tuple[int, int, int],
    ):
        """Builds the model's structure, and no array.

        Args:
          config: the `model` part of a config.
          classes: number of labels.
          shape: height, width and channels of an image.

        Raises:
          ValueError: if the config asks for what the family has not, or the images do
            not suit it.
        """
        self.size = self.sized(config)
        options = {"dtype": jnp.dtype(config.dtype), "remat": config.remat}
        super().__init__(
            functools.partial(self.module(config, classes, shape), **options)
        )

    def features(self, params: dict, images: jax.Array) -> jax.Array | None:
        """The last hidden layer, `(batch, width)`; None where the family has none."""
        module = self._module(params)
        return module.features(images) if hasattr(module, "features") else None

    def module(
        self,
        config: ml_collections.ConfigDict,
        classes: int,
        shape: tuple[int, int, int],
    ) -> Callable[..., nnx.Module]:
        """Makes the module, given `dtype`, `remat` and `rngs`."""
        raise NotImplementedError


def kernel(key: jax.Array, shape: Sequence[int], scale: float = 1.0) -> nnx.Param:
    """A weight `(..., inputs, outputs)` of standard deviation `scale / sqrt(inputs)`.

    Of a convolution's kernel all axes but the last are inputs.
    """
    inputs = np.prod(shape[:-1])
    return nnx.Param(jax.random.normal(key, shape) * (scale / np.sqrt(inputs)))


def table(key: jax.Array, rows: int, width: int) -> nnx.Param:
    """Embeddings `(rows, width)` of unit norm: a head's transpose, as it is drawn."""
    return nnx.Param(jax.random.normal(key, (rows, width)) / np.sqrt(width))


def add(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """`x` with a bias of its last axis, where there is one, in the dtype of `x`."""
    if bias is None:
        return x
    return x + bias[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def linear(
    x: jax.Array, weight: nnx.Param | jax.Array, bias: nnx.Param | None = None
) -> jax.Array:
    """`x weight + bias` along the last axis, in the dtype of `x`.

    All other axes of `x` are one to the product. As several, they make XLA choose a
    layout for the gradient of the weights that takes three times as long on a CPU.
    """
    product = x.reshape(-1, x.shape[-1]) @ weight[...].astype(x.dtype)
    return add(product.reshape(*x.shape[:-1], -1), bias)


def zeros(width: int) -> nnx.Param:
    """A bias."""
    return nnx.Param(jnp.zeros((width,)))


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs):
    """`count` modules in one, every parameter with a first axis of that length."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def made(rngs):
        return make(rngs)

    return made(rngs)


def run_stack(
    blocks: nnx.Module, x: jax.Array, remat: bool = False, *, unroll: bool = False
) -> jax.Array:
    """Applies the modules of a stack one after another, by a scan.

    Compilation does not grow with depth, and a matrix optimizer sees one stack for
    each kind of matrix.

    Args:
      blocks: from `stack`.
      x: what the first is given.
      remat: compute each module again in the backward pass instead of keeping it.
      unroll: compile each module apart and no loop: faster on a CPU, and compilation
        grows with depth.
    """

    def call(block, x):
        return block(x)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, unroll=unroll)
    def forward(x, block):
        return (nnx.remat(call) if remat else call)(block, x)

    return forward(x, blocks)


def run_and_look(blocks: nnx.Module, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a stack gives, and `largest_logit` of each of its blocks, `(blocks,)`."""

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def forward(x, block):
        return block(x), block.largest_logit(x)

    return forward(x, blocks)
