"""The frame of every command: flags, `--help`, and one line for a user's mistake."""

import contextlib
import ctypes
import logging
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from experiments import config as configs
from experiments.errors import UserError

_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}
# Standard error and nowhere, opened early: later no descriptor may be left.
_screen: list[int] = []


class _Path(flags.ArgumentParser):
    """A path as the shell would have it: `~` is the home folder."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def define_path(
    name: str, description: str, own: flags.FlagValues, default: str | None = None
) -> flags.FlagHolder:
    """Defines a flag that holds a path.

    Args:
      name: of the flag.
      description: what `--help` says of it.
      own: the command's flags.
      default: where it is not given.
    """
    return flags.DEFINE(
        _Path(),
        *(name, default, description),
        flag_values=own,
        serializer=flags.ArgumentSerializer(),
    )


def _keep_freed() -> None:
    """Lets the process keep what a step on a CPU frees, for the next step.

    By default glibc gives arrays of a few MB back to the system, which hands out, page
    by page, the same memory filled with zeros: up to half of a small model's step. To
    be called before jax starts its threads, which then share the memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # Of malloc.h: trim threshold, most maps, most arenas. Others ignore them.
        for name, value in ((-1, 2**31 - 1), (-4, 0), (-8, 1)):
            mallopt(name, value)


def run(
    main: Callable[[list[str], list[str]], int | None],
    own: flags.FlagValues,
    epilogue: Callable[[list[str]], str] = lambda overrides: "",
) -> None:
    """Parses the command line, calls `main`, and leaves with its status.

    Args:
      main: gets the positional arguments and the `--config.*` overrides, returns the
        exit status.
      own: the command's flags. Not absl's global ones, so that one program may import
        two commands that share a flag's name.
      epilogue: what `--help` says after the flags, by the overrides beside it; flags
        have their values then.
    """
    program = sys.modules["__main__"]
    _keep_freed()
    with contextlib.suppress(OSError):
        _screen[:] = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    # It tells of every accelerator that the machine has not.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

    def parse(argv: Sequence[str]) -> tuple[list[str], list[str]]:
        overrides, rest = configs.split_arguments(argv)
        if _HELP & set(rest):
            with contextlib.suppress(flags.Error):
                own([word for word in rest if word not in _HELP])
            own.mark_as_parsed()  # also where a flag beside it is wrong
            print(_help(program.__doc__, own, epilogue(overrides)))
            sys.exit(0)
        try:
            flags.FLAGS(rest[:1])  # absl's own, which nobody gives
            return own(rest)[1:], overrides
        except flags.Error as error:
            leave(UserError(str(error).splitlines()[0]))

    def guarded(arguments: tuple[list[str], list[str]]) -> None:
        try:
            status = main(*arguments)
        except UserError as error:
            leave(error)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            leave(UserError(where + (error.strerror or type(error).__name__)))
        except KeyboardInterrupt:
            status = 130
        sys.exit(status)

    app.run(guarded, flags_parser=parse)


def leave(error: UserError):
    """Says what was wrong and ends the process with the error's status.

    Nothing comes after that line: threads that a library left behind write to nowhere.
    """
    line = f"error: {error}\n"
    if _screen:
        screen, nowhere = _screen
        os.dup2(nowhere, 2)
        # Another thread may have left half a line there.
        line = "\n" * (threading.active_count() > 1) + line
        with contextlib.suppress(OSError):
            os.write(screen, line.encode(errors="backslashreplace"))
    else:
        sys.stderr.write(line)
    sys.exit(error.status)


def require(**values: str | None) -> None:
    """Raises a `UserError` for the first flag that was not given."""
    for name, value in values.items():
        if not value:
            raise UserError(f"--{name}: missing")


def no_arguments(positional: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Raises a `UserError` for what a command does not take."""
    for word in (*positional, *overrides):
        raise UserError(f"{word!r} belongs to no flag")


def _help(text: str | None, own: flags.FlagValues, epilogue: str) -> str:
    listed = [
        entry(f"--{name}={_shown(own[name].default)}", own[name].help) for name in own
    ]
    return "\n".join([f"{text}\nFlags:", *listed, "", epilogue]).rstrip()


def _shown(default: Any) -> str:
    """A flag's value as it would be given."""
    return ",".join(default) if isinstance(default, list) else str(default)


def entry(name: str, meaning: str) -> str:
    """A line for what is set and, below it, lines for what it means."""
    lines = textwrap.wrap(meaning, 82, break_on_hyphens=False, break_long_words=False)
    return "\n".join([f"  {name}", *(f"      {line}" for line in lines)])
