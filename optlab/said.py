"""What transforms say of their parameters while the state is made.

An optimizer is two functions, and wrappers such as `optax.chain` hide what they were
made with. But all of them hand the parameters down to every transform's `init`.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

Said = dict[str, dict[Any, Any]]

_SAID: contextvars.ContextVar[Said | None] = contextvars.ContextVar(
    "said", default=None
)


def note(subject: str, entries: Mapping[Any, Any]) -> None:
    """Tells the innermost `listening` something by key; without one, nobody."""
    said = _SAID.get()
    if said is not None:
        said.setdefault(subject, {}).update(entries)


@contextlib.contextmanager
def overhearing() -> Iterator[Said]:
    """As `listening`, and whoever listens outside of it is told the same."""
    with listening() as said:
        yield said
    for subject, entries in said.items():
        note(subject, entries)


@contextlib.contextmanager
def listening() -> Iterator[Said]:
    """Gathers what is told inside of it: by subject, then by key."""
    said: Said = {}
    token = _SAID.set(said)
    try:
        yield said
    finally:
        _SAID.reset(token)
