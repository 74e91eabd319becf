"""What goes around a run's optimizer: the words of `optimizer.wrappers`.

`cautious, skip_spikes(watch=loss)` stands for
`optlab.skip_spikes(optlab.cautious(tx), watch="loss")`: wrappers from the inside out,
with the arguments that are not at their defaults. Those of `ON_DIRECTIONS` come first:
they work on what the optimizer steps along, before its rate and its decay.
"""

import ast
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import optlab
from experiments.arguments import arguments_of
from experiments.errors import UserError, nearest, one_line
from optlab.compose import descend
from optlab.signatures import accepted, takes

_FIELD = "--config.optimizer.wrappers"
_ALL = (
    optlab.normalize_neurons,
    optlab.hyperball,
    optlab.cautious,
    optlab.small_state,
    optlab.split_weights,
    optlab.skip_spikes,
)
WRAPPERS: dict[str, Callable[..., Any]] = {x.__name__: x for x in _ALL}
ON_DIRECTIONS = ("normalize_neurons", "hyperball")
# What the runner gives by itself.
_SUPPLIED = ("learning_rate", "roles")


class Wrapper(NamedTuple):
    """One of `WRAPPERS` by its name, and the arguments that it gets."""

    name: str
    arguments: dict[str, Any]


def parse(text: str) -> list[Wrapper]:
    """The wrappers that the words name, from the inside out.

    Raises:
      UserError: if they name none of `WRAPPERS`, one twice or in a wrong place, or an
        argument that it does not have.
    """
    try:
        nodes = ast.parse(f"[{text}\n]", mode="eval").body.elts  # type: ignore
        found = [_wrapper(node) for node in nodes]
    except (SyntaxError, ValueError, AttributeError, MemoryError, RecursionError):
        raise UserError(
            f"{_FIELD}: given {text!r}, allowed names and arguments such as 'cautious, "
            "skip_spikes(watch=loss, window=64)'"
        ) from None
    names = [wrapper.name for wrapper in found]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"{_FIELD}: {name} is given twice")
        first = [x for x in ON_DIRECTIONS if x in names]
        if name in first and place != first.index(name):
            raise UserError(f"{_FIELD}: {', '.join(first)} must come first")
    return found


def needs(text: str) -> tuple[str, ...]:
    """Extra arguments of `update` that the wrappers must get, as in the registry."""
    watched = [x.arguments.get("watch") for x in parse(text) if x.name == "skip_spikes"]
    return ("value",) if "loss" in watched or "both" in watched else ()


def parts_matrices(text: str) -> bool:
    """Whether the leaves that are no hidden matrix step apart, whatever the method."""
    return any(wrapper.name in ON_DIRECTIONS for wrapper in parse(text))


def weights_dtype(text: str) -> Any:
    """What the weights are cast to, None where they stay as the task has them."""
    split = any(wrapper.name == "split_weights" for wrapper in parse(text))
    return jnp.bfloat16 if split else None


def _wrapper(node: ast.expr) -> Wrapper:
    """Of one name or call.

    Raises:
      ValueError: if it is something else.
      UserError: if there is no such wrapper or argument.
    """
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
        raise ValueError
    name = call.func.id
    if name not in WRAPPERS:
        raise UserError(
            f"{_FIELD}: given {name!r}, allowed {', '.join(WRAPPERS)}"
            f"{nearest(name, WRAPPERS)}"
        )
    allowed = arguments_of(WRAPPERS[name], _SUPPLIED).by_name
    given = {}
    for word in call.keywords:
        if word.arg not in allowed:
            raise UserError(
                f"{_FIELD}: {name} has no argument {word.arg!r}, allowed "
                f"{', '.join(allowed)}{nearest(word.arg or '', allowed)}"
            )
        written = word.value
        value = (
            written.id if isinstance(written, ast.Name) else ast.literal_eval(written)
        )
        # A string would be taken for a tuple of its letters.
        listed = isinstance(value, tuple | list)
        names = listed and all(isinstance(x, str) for x in value)
        if allowed[word.arg].kind is tuple and not names:
            raise UserError(
                f"{_FIELD}: {name}: {word.arg}: given {value!r}, allowed a tuple of "
                "names, such as ('mu',)"
            )
        given[word.arg] = value
    return Wrapper(name, given)


def wrapped(
    name: str, arguments: Mapping[str, Any], wrappers: list[Wrapper]
) -> optax.GradientTransformation:
    """An optimizer of the registry inside of its wrappers.

    Args:
      name: of the optimizer.
      arguments: that it gets; wrappers have its roles.
      wrappers: from `parse`.

    Raises:
      UserError: if a wrapper cannot be had with these arguments or this optimizer.
    """
    inner = [x for x in wrappers if x.name in ON_DIRECTIONS]
    if inner:
        tx = _stepping(name, arguments, inner)
    else:
        tx = optlab.registry.get(name).factory(**arguments)
    for wrapper in wrappers[len(inner) :]:
        tx = _called(wrapper, arguments, tx)
    return tx


def _stepping(
    name: str, arguments: Mapping[str, Any], wrappers: list[Wrapper]
) -> optax.GradientTransformation:
    """Hidden matrices step along a direction that wrappers change, others without."""
    method = getattr(optlab.directions, name, None)
    if method is None:
        raise UserError(
            f"{_FIELD}: {wrappers[0].name} needs a direction of optlab.directions, and "
            f"there is none of optimizer.name={name}"
        )
    apart = ("learning_rate", "adam_learning_rate")
    own = {x: value for x, value in arguments.items() if x not in apart}
    for argument, value in own.items():
        if argument.endswith("learning_rate") and value is not None:
            raise UserError(
                f"--config.optimizer.kwargs.{argument}: not with {wrappers[0].name}, "
                "use optimizer.adam_learning_rate"
            )
    direction = method(**accepted(method, own))
    chosen = ("weight_decay_mask", "cautious_decay", "roles")
    end = partial(descend, **{x: own[x] for x in chosen if x in own})

    def of_others(argument: str, default: Any) -> Any:
        """What the leaves have that are no hidden matrix."""
        value = arguments.get(f"adam_{argument}")
        return default if value is None else value

    rate, decay = arguments["learning_rate"], own.get("weight_decay", 0.0)
    matrices = direction
    for wrapper in wrappers:
        if wrapper.name == "hyperball":
            matrices = _called(wrapper, own, matrices, rate)
        else:
            matrices = optax.chain(matrices, _called(wrapper, own))
    if wrappers[-1].name != "hyperball":
        matrices = end(matrices, rate, decay)
    others = end(
        direction, of_others("learning_rate", rate), of_others("weight_decay", decay)
    )
    return optlab.by_role(matrices, others, own.get("roles"))


def _called(wrapper: Wrapper, arguments: Mapping[str, Any], *given: Any) -> Any:
    """What a wrapper makes of a transform.

    Raises:
      UserError: if a value is out of range.
    """
    function = WRAPPERS[wrapper.name]
    roles = {"roles": arguments.get("roles")} if takes(function, "roles") else {}
    try:
        return function(*given, **wrapper.arguments, **roles)
    except (ValueError, TypeError) as error:
        raise UserError(f"{_FIELD}: {wrapper.name}: {one_line(error)}") from error
