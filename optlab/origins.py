"""Who owns a name in a registry: what was registered, told by where it is written.

A config file that is read again makes its functions and classes again. So two things
are the same one where they have one place in one file, and a name belongs to one file.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

# Of code that was made at run time, as in dataclasses, or typed in: each cell of a
# notebook has its own file name, and the notebook is one module.
_NO_FILE = re.compile("^<|[/\\\\]ipykernel_")


def origin(made: Any) -> tuple[Any, ...]:
    """Where a function or class is written; of an object, where its class is."""
    if isinstance(made, partial):
        words = sorted(made.keywords.items())
        return (*origin(made.func), made.args, words)
    made = _written(made)
    # Functions without a name differ in their lines.
    code = getattr(made, "__code__", None)
    line = code.co_firstlineno if code and "<lambda>" in made.__qualname__ else 0
    return file_of(made), made.__qualname__, line


def file_of(made: Any) -> str:
    """The file of a function, a class, or an object's class; at least its module."""
    if isinstance(made, partial):
        return file_of(made.func)
    made = _written(made)
    for inner in (made, *getattr(made, "__dict__", {}).values()):
        code = getattr(inner, "__code__", None)
        if code is not None and not _NO_FILE.search(code.co_filename):
            return os.path.realpath(code.co_filename)
    name = made.__module__ or "builtins"
    return getattr(sys.modules.get(name), "__file__", None) or name


def refuse_other(name: str, before: Callable | None, now: Callable) -> None:
    """Refuses what is no name, what cannot be called, and a name that is taken.

    Args:
      name: to register.
      before: what has the name, None if it is free.
      now: what is to have it.

    Raises:
      ValueError: naming the files of both.
    """
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise ValueError(f"name: given {name!r}, allowed a string")
    if not callable(now):
        raise ValueError(f"{name}: given {now!r}, allowed a function or a class")
    if before is not None and origin(before) != origin(now):
        raise ValueError(
            f"name: {name!r} is registered already, as {_place(before)}, and cannot "
            f"be {_place(now)} too"
        )


def _written(made: Any) -> Any:
    """The function or class that someone wrote."""
    made = inspect.unwrap(made)
    return made if hasattr(made, "__qualname__") else type(made)


def _place(made: Any) -> str:
    return f"{origin(made)[1]} of {file_of(made)}"
