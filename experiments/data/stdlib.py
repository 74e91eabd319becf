"""The source of Python's own standard library, as bytes: real text, no download."""

import dataclasses
import functools
import hashlib
import pathlib
import sysconfig

import numpy as np

from experiments.data.windows import Corpus

# Tests are a third of the library and repetitive; the rest is not the library's own.
_EXCLUDED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
)
_VALIDATION_SHARE = 16  # one file in so many, chosen by the hash of its name


@dataclasses.dataclass(frozen=True)
class Library(Corpus):
    """The corpus with its files; `digest` is the sha256 of names and contents."""

    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]


def held_out(name: str) -> bool:
    """Whether a file is for validation: it keeps its side when others come or go."""
    return hashlib.sha256(name.encode()).digest()[0] % _VALIDATION_SHARE == 0


def _sources(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Names and paths of the library's modules, in an order that no machine changes."""
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        # _sysconfigdata_* is written by the build of the interpreter.
        generated = name.name.startswith("_sysconfigdata")
        if not generated and _EXCLUDED.isdisjoint(name.parts[:-1]):
            found.append((name.as_posix(), path))
    return sorted(found)


@functools.cache
def load(root: str | None = None) -> Library:
    """Reads the sources below `root`, by default those of the running interpreter.

    Args:
      root: folder with `*.py` files.

    Returns:
      The corpus; about 10.5 MB to train on and 0.7 MB to validate.

    Raises:
      ValueError: if there is no source below `root`, or too little of it.
    """
    folder = pathlib.Path(root or sysconfig.get_path("stdlib"))
    digest = hashlib.sha256()
    splits: dict[bool, list[tuple[str, bytes]]] = {False: [], True: []}
    for name, path in _sources(folder):
        text = path.read_bytes()
        digest.update(f"{name}\0{len(text)}\0".encode())
        digest.update(text)
        splits[held_out(name)].append((name, text))
    for validation, files in splits.items():
        if not files:
            kind = "validation" if validation else "training"
            raise ValueError(f"task.data: no {kind} sources (*.py) below {folder}")
    train, validation = (
        np.frombuffer(b"".join(text for _, text in splits[side]), np.uint8)
        for side in (False, True)
    )
    return Library(
        train=(train,),
        validation=(validation,),
        vocab_size=256,
        digest=digest.hexdigest(),
        train_files=tuple(name for name, _ in splits[False]),
        validation_files=tuple(name for name, _ in splits[True]),
    )
