"""What is trained: one module per family."""

from collections.abc import Mapping

import ml_collections

from experiments.models import gpt2, llama, mlp, resnet, vit
from experiments.models.model import Model

# Name in `model.name` -> (config.model, vocab_size, context) -> model.
LANGUAGE_MODELS = {"llama": llama.Llama, "gpt2": gpt2.GPT2}
# Name in `model.name` -> (config.model, classes, shape of an image) -> model.
CLASSIFIERS = {"resnet": resnet.ResNet, "vit": vit.ViT, "mlp": mlp.MLP}
MODELS: dict[str, type[Model]] = LANGUAGE_MODELS | CLASSIFIERS


def build(
    config: ml_collections.ConfigDict,
    families: Mapping[str, type[Model]],
    outputs: int,
    inputs,
) -> Model:
    """The model that `config.model` describes.

    Args:
      config: the whole config.
      families: those that the task can train.
      outputs: number of tokens or classes.
      inputs: tokens in a window, or the shape of an image.

    Raises:
      ValueError: naming the field that is wrong.
    """
    name = config.model.name
    if name not in families:
        raise ValueError(
            f"model.name: given {name!r}, allowed {', '.join(families)} with "
            f"task.name={config.task.name}"
        )
    return families[name](config.model, outputs, inputs)
