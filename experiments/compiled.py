"""The folder in which jax keeps compiled programs, for a part of a process."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

# It would say each time that the cache is another one now.
logging.getLogger(compilation_cache.reset_cache.__module__).setLevel(logging.WARNING)


@contextlib.contextmanager
def kept_in(folder: str | pathlib.Path) -> Iterator[None]:
    """Programs that are compiled here are taken from the folder when made again."""
    before = jax.config.jax_compilation_cache_dir
    _use(str(folder))
    try:
        yield
    finally:
        _use(before)


def _use(path: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()
