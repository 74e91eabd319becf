"""Configs and sweeps are Python files: the one place that runs them."""

import hashlib
import os
import pathlib
import sys
import traceback
import types
from typing import Any

from experiments.errors import UserError, nearest, one_line


def load_python_config(path: str, function: str, flag: str) -> Any:
    """Runs a Python file and calls its function without arguments.

    A file is run once in a process as long as its text stays the same, so that what it
    registers is registered once; the function is called each time.

    Args:
      path: of the file; `~` is expanded.
      function: its name, such as `get_config`.
      flag: what errors name, such as `--config`.

    Returns:
      What the function returned, of whatever type, not copied.

    Raises:
      UserError: one line, if there is no such file, it cannot be read or run, lacks
        the function, or tries to end the process.
    """
    file = pathlib.Path(os.path.expanduser(path))
    try:
        source = file.read_bytes()
    except (FileNotFoundError, ValueError) as error:  # a NUL is in no path
        known = [str(found) for found in pathlib.Path("configs").rglob("*.py")]
        raise UserError(f"{flag}: no file {path!r}{nearest(path, known)}") from error
    except OSError as error:
        raise UserError(f"{flag}: {path!r}: {error.strerror}") from error
    found = None
    try:
        found = getattr(_module(file, source), function, None)
        if callable(found):
            return found()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in the file is its mistake too
        name, said = type(error).__name__, one_line(error)
        reason = name if said == name else f"{name}: {said}"
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(file.absolute())
        ]
        where = f" (line {lines[-1]})" if lines else ""
        raise UserError(f"{flag}: {path} does not load, {reason}{where}") from error
    raise UserError(f"{flag}: {path} has no {function}()")


def _module(file: pathlib.Path, source: bytes) -> types.ModuleType:
    """The file's module, run unless this process has run the same text before."""
    identity = os.fsencode(file.absolute()) + b"\0" + source
    name = f"config_file_{hashlib.sha256(identity).hexdigest()[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = str(file.absolute())
        code = compile(source, module.__file__, "exec")
        # Dataclasses look their module up there while it runs.
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
