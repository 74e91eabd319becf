"""What is trained: one module per family, and those that `register` adds.

A model has `init(key) -> params`, a plain nested dictionary of arrays,
`apply(params, inputs)`, and `stacked` and `embeddings`, which `optlab.default_roles`
takes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections

from experiments.models import gpt2, llama, mlp, resnet, vit
from experiments.models.model import OPTIONS, SIZES, Model
from optlab.origins import refuse_other
from optlab.signatures import accepted, parameters_of, takes

# Fields of `model` that an own family gets where it has an argument of that name.
FIELDS = (*SIZES, *OPTIONS, "dtype")


class Family(NamedTuple):
    """How models of a name are made.

    Attributes:
      factory: what was registered; its arguments are what `model.kwargs` may hold.
      tasks: names of the tasks that can train them.
      make: `make(config.model, outputs, inputs, **kwargs) -> model`.
      sizes: what `model.size` may be; empty where it says nothing.
    """

    factory: Callable[..., Any]
    tasks: tuple[str, ...]
    make: Callable[..., Any]
    sizes: Sequence[str]

    def __call__(self, *arguments: Any, **kwargs: Any) -> Any:
        """Makes a model."""
        return self.make(*arguments, **kwargs)


# Name in `model.name` -> family.
MODELS: dict[str, Family] = {}


def register(
    name: str,
    family: Callable[..., Any],
    *,
    task: str | Sequence[str],
    stacked: Any = (),
    embeddings: Any = None,
) -> None:
    """Adds a model, for `model.name` to choose.

    Args:
      name: to call it by.
      family: `family(outputs, inputs, **arguments)`, with `outputs` the number of
        tokens or classes and `inputs` the tokens in a window or the shape of an image.
        A `flax.nnx.Module` with the argument `rngs`, whose variables are all
        `nnx.Param`; or a function to an object with `init(key)` and
        `apply(params, inputs)`. Arguments with a default are offered as
        `model.kwargs`; those called `width`, `layers`, `heads`, `hidden`, `tied`,
        `qk_norm`, `remat`, `unroll` or `dtype` are these fields of `model`. A subclass
        of `experiments.models.Model` gets `config.model` first.
      task: name of the task that trains it, such as "language_model" (tokens to
        logits) or "classification" (images to logits), or several.
      stacked: as in `optlab.default_roles`: patterns of paths whose first axis counts
        layers.
      embeddings: as in `optlab.default_roles`: patterns of paths of tables; None: found
        by their names.

    Raises:
      ValueError: the name is taken by what another file registers. From the same file
        it may be registered again.
    """
    refuse_other(name, MODELS[name].factory if name in MODELS else None, family)
    tasks = (task,) if isinstance(task, str) else tuple(task)
    if isinstance(family, type) and issubclass(family, Model):
        MODELS[name] = Family(family, tasks, family, family.sizes)
        return
    marks = {"stacked": stacked, "embeddings": embeddings}
    make = functools.partial(_own_model, family, marks)
    MODELS[name] = Family(family, tasks, make, ())


def build(
    config: ml_collections.ConfigDict, task: str, outputs: int, inputs: Any
) -> Any:
    """The model that `config.model` describes.

    Args:
      config: the whole config.
      task: the model must be one that this task can train.
      outputs: number of tokens or classes.
      inputs: tokens in a window, or the shape of an image.

    Raises:
      ValueError: naming the field that is wrong.
    """
    name = config.model.name
    allowed = [x for x in MODELS if task in MODELS[x].tasks]
    if name not in allowed:
        raise ValueError(
            f"model.name: given {name!r}, allowed {', '.join(allowed)} with "
            f"task.name={config.task.name}"
        )
    return MODELS[name](config.model, outputs, inputs, **config.model.kwargs)


def _own_model(
    family: Callable[..., Any],
    marks: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    outputs: int,
    inputs: Any,
    **kwargs: Any,
) -> Any:
    """A model of a family from outside."""
    switches = {name: config[name] for name in OPTIONS if config[name]}
    sizes = {name: config[name] for name in SIZES if config[name] is not None}
    for name, value in (sizes | switches).items():
        if not takes(family, name):
            raise ValueError(
                f"model.{name}: given {value}, model.name={config.name} has none"
            )
    given = {
        name: config[name]
        for name in FIELDS
        if config[name] is not None and takes(family, name)
    }
    if "dtype" in given:
        given["dtype"] = jnp.dtype(given["dtype"])
    own = accepted(family, kwargs)
    make = functools.partial(family, outputs, inputs, **given, **own)
    made = Model(make) if "rngs" in parameters_of(family) else make()
    for name in ("init", "apply"):
        if not callable(getattr(made, name, None)):
            raise ValueError(
                f"model.name: {config.name} makes a {type(made).__name__}, which has "
                f"no {name}(); a module of flax.nnx takes rngs"
            )
    return _Marked(made, **marks)


class _Marked:
    """A model, and what `optlab.default_roles` needs to know of its paths."""

    def __init__(self, model: Any, stacked: Any, embeddings: Any):
        self.init, self.apply = model.init, model.apply
        self.stacked, self.embeddings = stacked, embeddings


for _name, _family in (("llama", llama.Llama), ("gpt2", gpt2.GPT2)):
    register(_name, _family, task="language_model")
for _name, _family in (("resnet", resnet.ResNet), ("vit", vit.ViT), ("mlp", mlp.MLP)):
    register(_name, _family, task="classification")
