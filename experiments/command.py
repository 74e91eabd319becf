"""The frame of every command: flags, `--help`, and one line for a user's mistake."""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from experiments import config as configs


def run(main: Callable[[list[str], list[str]], int | None], epilogue: str = "") -> None:
    """Parses the command line, calls `main`, and leaves with its status.

    Args:
      main: gets the positional arguments and the `--config.*` overrides, returns the
        exit status.
      epilogue: what `--help` says after the flags.
    """
    program = sys.modules["__main__"]
    # It tells of every accelerator that the machine has not.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

    def parse(argv: Sequence[str]) -> tuple[list[str], list[str]]:
        overrides, rest = configs.split_arguments(argv)
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(rest):
            print(_help(program, epilogue))
            sys.exit(0)
        try:
            return flags.FLAGS(rest)[1:], overrides
        except flags.Error as error:
            leave(configs.UserError(str(error).splitlines()[0]))

    def guarded(arguments: tuple[list[str], list[str]]) -> None:
        try:
            status = main(*arguments)
        except configs.UserError as error:
            leave(error)
        sys.exit(status)

    app.run(guarded, flags_parser=parse)


def leave(error: configs.UserError):
    """Says what was wrong and ends the process with the error's status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.status)


def require(**values: str | None) -> None:
    """Raises a `UserError` for the first flag that was not given."""
    for name, value in values.items():
        if not value:
            raise configs.UserError(f"--{name}: missing")


def no_arguments(positional: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Raises a `UserError` for what a command does not take."""
    for word in (*positional, *overrides):
        raise configs.UserError(f"{word!r} belongs to no flag")


def _help(program, epilogue: str) -> str:
    own = flags.FLAGS.get_key_flags_for_module(program)
    listed = "".join(
        f"  --{flag.name}={flag.default}\n      {flag.help}\n" for flag in own
    )
    return f"{program.__doc__}\nFlags:\n{listed}\n{epilogue}".rstrip()
