"""The arguments of a factory that a config offers, read from signature and docstring.

A config can hold numbers, strings, booleans and tuples of them. So an argument is
offered if its default is one of these, or None. :mod:`optlab.signatures` says what
`**options` stands for.
"""

import ast
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from optlab.options import entries
from optlab.signatures import options_of, parameters_of

_KINDS = (bool, int, float, str, tuple)


class Argument(NamedTuple):
    """One argument.

    Attributes:
      default: its value where none is given.
      kind: type of the values that it takes, beside a default None.
      named: whether the signature has it; None is then a value like others.
    """

    default: Any
    kind: type
    named: bool


class Arguments(NamedTuple):
    """Those of a factory by name, and whether it takes any other name too."""

    by_name: dict[str, Argument]
    open: bool


def arguments_of(factory: Callable, supplied: Iterable[str] = ()) -> Arguments:
    """The arguments that a config may set.

    Args:
      factory: a function or a class.
      supplied: names of arguments that someone else gives.
    """
    by_name = {
        name: Argument(parameter.default, _kind(parameter), named=True)
        for name, parameter in parameters_of(factory).items()
        if isinstance(parameter.default, (*_KINDS, type(None)))
    }
    typed, is_open = options_of(factory)
    for name, annotation in typed.items():
        argument = Argument(None, _annotated(annotation, name), named=False)
        by_name.setdefault(name, argument)
    kept = {name: x for name, x in by_name.items() if name not in set(supplied)}
    return Arguments(kept, is_open)


def literal(text: str) -> bool | int | float | str:
    """The number or truth that a word stands for, or the word itself."""
    try:
        value = ast.literal_eval(text.capitalize() if text.islower() else text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


def meanings(factory: Callable) -> dict[str, str]:
    """What the docstring says of each argument below `Args:`, each in one line."""
    while isinstance(factory, partial):
        factory = factory.func
    texts = [inspect.getdoc(factory)]
    if isinstance(factory, type):
        texts.append(inspect.getdoc(factory.__init__))
    found: dict[str, str] = {}
    for text in texts:
        said = entries(text or "")
        found = {name: x.meaning for x in said for name in x.names} | found
    return found


def _kind(parameter: inspect.Parameter) -> type:
    default = parameter.default
    if default is not None:
        return type(default)
    return _annotated(parameter.annotation, parameter.name)


def _annotated(annotation: Any, name: str) -> type:
    """The type that an argument takes whose default is None."""
    if isinstance(annotation, str):
        words = re.findall(r"\w+", annotation)
    else:
        members = typing.get_args(annotation) or (annotation,)
        words = [getattr(member, "__name__", "") for member in members]
    for kind in (float, int, str, bool):
        if kind.__name__ in words:
            return kind
    return float if name.endswith(("rate", "decay")) else str
