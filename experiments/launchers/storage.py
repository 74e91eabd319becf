"""The database of a sweep: its URL, and patience while it does not answer."""

import logging
import pathlib
import re
import time
import urllib.parse
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from experiments.errors import UserError

# A server that is started again is back within this time.
PATIENCE_SECONDS = 300.0
_SECONDS_BETWEEN_TRIES = 1.0
# Two launchers that make the tables of an empty database at once: one of them fails.
_TRIES_TO_OPEN = 5
# A file that is locked, or a server that is silent, for longer counts as away.
_TIMEOUT_SECONDS = 5
_PASSWORDS = "; a password is read from ~/.pgpass"
_AWAY = (
    *(sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError),
    *(sqlalchemy.exc.InternalError, sqlalchemy.exc.TimeoutError),
)


class StorageAway(UserError):
    """The storage has not answered for too long, or the sweep is to stop meanwhile."""


def of_file(path: pathlib.Path) -> str:
    """The URL of a database file, whatever characters its path has."""
    url = sqlalchemy.URL.create("sqlite", database=str(path))
    return url.render_as_string()


class Storage:
    """Optuna's storage, with retries.

    Args:
      url: of the database.

    Attributes:
      optuna: what Optuna takes as its storage.
      engine: SQLAlchemy's, for tables beside Optuna's.
      say: shows a line to the user.
      stopped: not empty once the sweep is to stop: nothing is waited for then.

    Raises:
      UserError: if the storage does not open.
    """

    def __init__(self, url: str):
        self._secrets = _secrets(url)
        self._shown = _without_password(url)
        self.say: Callable[[str], None] = print
        self.stopped: list[int] = []
        self._gave_up = False
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # It repeats what the exception says, with the statement.
        logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
        for left in reversed(range(_TRIES_TO_OPEN)):
            try:
                self.optuna = self._open(url)
                break
            except Exception as error:  # of whichever database the URL names
                if not left or not _raced(error):
                    hint = _PASSWORDS if url.startswith("postgres") else ""
                    raise UserError(
                        f"--storage: {self._shown} does not open, "
                        f"{self._reason(error)}{hint}"
                    ) from None  # the cause's text may hold the password
            time.sleep(0.2 * (_TRIES_TO_OPEN - left))
        self.engine = self.optuna._backend.engine
        if self._secrets and url.startswith("postgres"):
            self.say(
                f"--storage: {self._shown}: others see a password on the command "
                "line; keep it in ~/.pgpass"
            )

    def _open(self, url: str) -> optuna.storages.BaseStorage:
        # For the bare scheme SQLAlchemy 2.1 takes psycopg 3; ours is psycopg2.
        url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)
        # After a server's restart the connections of before are of no use.
        options: dict[str, Any] = {"pool_pre_ping": True}
        if url.startswith("sqlite"):
            options["connect_args"] = {"timeout": _TIMEOUT_SECONDS}
            # A file is closed after each use, and none is left open in the end.
            options["poolclass"] = sqlalchemy.NullPool
        elif url.startswith("postgresql"):
            options["connect_args"] = {"connect_timeout": _TIMEOUT_SECONDS}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Optuna formats the URL.
            escaped = url.replace("{", "{{").replace("}", "}}")
            made = optuna.storages.RDBStorage(escaped, engine_kwargs=options)
            return optuna.storages._CachedStorage(made)

    def _reason(self, error: BaseException) -> str:
        """What the database says, in one line and without the password."""
        error = _cause(error)
        error = getattr(error, "orig", None) or error  # SQLAlchemy adds the statement
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        said = next((line for line in text.splitlines() if line.strip()), "")
        return f"{type(error).__name__}: {said.strip()}".removesuffix(": ")

    def patiently(self, work: Callable[..., Any], *arguments: Any, **options: Any):
        """Calls `work`, again and again while the storage does not answer.

        Raises:
          StorageAway: if that lasts for `PATIENCE_SECONDS`.
        """
        deadline, told = time.monotonic() + PATIENCE_SECONDS, False
        while True:
            try:
                return work(*arguments, **options)
            except (SQLAlchemyError, StorageInternalError) as error:
                reason = self._reason(error)
                passes = isinstance(_cause(error), _AWAY)
            waits = passes and not self.stopped and not self._gave_up
            if not waits or time.monotonic() > deadline:
                self._gave_up = True
                raise StorageAway(
                    f"--storage: {self._shown} does not answer, {reason}; the points' "
                    "folders have all results, the same command goes on"
                ) from None
            if not told:
                self.say(
                    f"the storage does not answer, waiting up to "
                    f"{PATIENCE_SECONDS:.0f} seconds: {reason}"
                )
                told = True
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _cause(error: BaseException) -> BaseException:
    """What the database raised, without Optuna's word about it."""
    inner = isinstance(error, StorageInternalError) and error.__cause__
    return inner or error


def _raced(error: Exception) -> bool:
    """Whether another launcher may just have made what this one was making."""
    said = str(_cause(error))
    return any(
        word in said for word in ("already exists", "UNIQUE", "unique", "locked")
    )


# Up to the last @, as a password may hold one that should have been escaped.
_OF_USER = re.compile(r"(?<=://)([^:@/]*:)(.*)(?=@)", re.S)
_OF_QUERY = re.compile(r"([?&]\w*pass\w*=)([^&#]*)")


def _without_password(url: str) -> str:
    return _OF_QUERY.sub(r"\1***", _OF_USER.sub(r"\1***", url))


def _secrets(url: str) -> list[str]:
    """The passwords of a URL as it has them, and as they are meant; longest first."""
    found = [m[2] for m in (*_OF_USER.finditer(url), *_OF_QUERY.finditer(url))]
    meant = [urllib.parse.unquote(secret) for secret in found]
    meant += [urllib.parse.unquote_plus(secret) for secret in found]
    return sorted({*found, *meant} - {""}, key=len, reverse=True)
