"""What a factory takes: the arguments that its signature names, and its `**options`.

`**options: Unpack[T]` stands for the keys of the `TypedDict` T; plain `**options` takes
any name.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def parameters_of(factory: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function or class by name.

    Classes whose metaclass makes the objects, as flax has it, say nothing by
    themselves: their `__init__` does.
    """
    if isinstance(factory, type) and type(factory).__call__ is not type.__call__:
        _, *own = inspect.signature(factory.__init__).parameters.items()
        return dict(own)
    return inspect.signature(factory).parameters


def accepted(factory: Callable, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a factory takes.

    Args:
      factory: a function or a class.
      offered: values by name. What `**options` would take and is None was not given.
    """
    parameters = parameters_of(factory)
    named = {name for name in parameters if parameters[name].kind not in _VARIADIC}
    typed, is_open = options_of(factory)
    return {
        name: value
        for name, value in offered.items()
        if name in named or (value is not None and (is_open or name in typed))
    }


def takes(factory: Callable, name: str) -> bool:
    """Whether the signature has the argument, or its typed `**options`."""
    typed, _ = options_of(factory)
    return name in parameters_of(factory) or name in typed


def own_names(factory: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the factory's own names, where it knows them by others too.

    A factory has `synonyms`, names that it takes besides, each with its own name: the
    decay of a momentum is `b1` to some methods and `momentum` to others, and each takes
    either.

    Raises:
      ValueError: an argument is given under both names.
    """
    found = dict(given)
    for other, name in getattr(factory, "synonyms", {}).items():
        if other in found:
            if name in found:
                raise ValueError(
                    f"{name} and {other} are one argument: given {found[name]!r} and "
                    f"{found[other]!r}, allowed one of them"
                )
            found[name] = found.pop(other)
    return found


def options_of(factory: Callable) -> tuple[dict[str, Any], bool]:
    """The keys of typed `**options` with their types, and whether any name is taken."""
    parameters = parameters_of(factory).values()
    rest = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    if not rest:
        return {}, False
    written = factory.__init__ if isinstance(factory, type) else factory
    written = inspect.unwrap(written.func if isinstance(written, partial) else written)
    try:
        hints = typing.get_type_hints(written, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names for type checkers alone
        hints = {}
    hint = hints.get(rest[0].name, rest[0].annotation)
    if typing.get_origin(hint) is not typing.Unpack:
        return {}, True
    return typing.get_type_hints(typing.get_args(hint)[0]), False
