"""What files hold, told cheaply enough to ask at every start.

Up to `WHOLE` bytes altogether they are hashed whole. Of more, each file's size, its
time of change and blocks spread over it are: any write to a file is seen, by its time,
and a copy that keeps times is the same data.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# Bytes that are read whole: less than a second.
WHOLE = 2**28
# Blocks of all files together; each has two at least, its ends.
BLOCKS = 1024
BLOCK_BYTES = 2**16
# Files of one data set that are told apart; of more, only whether any has changed.
NAMED = 1000


def is_small(files: Sequence[pathlib.Path]) -> bool:
    """Whether the files are read whole."""
    return sum(file.stat().st_size for file in files) <= WHOLE


def samples(array: np.ndarray, files: int) -> list[np.ndarray]:
    """Blocks of one of so many files, spread evenly with both ends among them."""
    size = max(BLOCK_BYTES // array.itemsize, 1)
    if len(array) <= 2 * size:
        return [array]
    count = max(BLOCKS // files, 2)
    starts = np.linspace(0, len(array) - size, count).astype(np.int64)
    return [array[start : start + size] for start in starts]


def digest_of(*arrays: np.ndarray) -> str:
    """A hash of arrays in memory."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()


def digest(files: Mapping[str, pathlib.Path]) -> str:
    """A hash of all files by name, as the module says."""
    small = is_small(list(files.values()))
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        total.update(f"{name} {file.stat().st_size}\n".encode())
        for part in _parts(file, len(files), small):
            total.update(part)
    return total.hexdigest()


def by_file(files: Mapping[str, pathlib.Path]) -> dict[str, str]:
    """The same of each file; {} of more files than `NAMED`."""
    if len(files) > NAMED:
        return {}
    small, found = is_small(list(files.values())), {}
    for name, file in sorted(files.items()):
        total = hashlib.sha256()
        for part in _parts(file, len(files), small):
            total.update(part)
        kind = "sha256" if small else "blocks"
        found[name] = _one(file.stat().st_size, kind, total.hexdigest())
    return found


def by_hash(files: Mapping[str, pathlib.Path], hashes: Mapping[str, Any]) -> dict:
    """`by_file` of files whose sha256 is known; {} where it is not known of all."""
    if len(files) > NAMED or not all(isinstance(hashes[x], str) for x in files):
        return {}
    return {
        name: _one(file.stat().st_size, "sha256", hashes[name])
        for name, file in sorted(files.items())
    }


def changed_file(before: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """The first file that is gone, new or changed, in words; empty if none is found.

    Args:
      before: what `by_file` or `by_hash` returned, as JSON gives it back.
      now: the same of today.
    """
    if not (before and now):
        return ""
    for name in sorted(before.keys() - now.keys()):
        return f"the data file {name}, which is gone"
    for name in sorted(now.keys() - before.keys()):
        return f"no data file {name}, which is new"
    # Sizes first: one that grows may change how all the others are read.
    for parts in (1, 3):
        for name in sorted(now):
            old, new = (str(x[name]).split(":") for x in (before, now))
            comparable = parts == 1 or old[:2] == new[:2]
            if comparable and old[:parts] != new[:parts]:
                return f"the data file {name}, which has changed since"
    return ""


def _parts(file: pathlib.Path, files: int, small: bool) -> Iterator[Any]:
    """What counts of one of so many files."""
    status = os.stat(file)
    if small:
        yield file.read_bytes()
    elif status.st_size:
        yield f"{status.st_mtime_ns}\n".encode()
        yield from samples(np.memmap(file, np.uint8, mode="r"), files)


def _one(size: int, kind: str, content: str) -> str:
    return f"{size}:{kind}:{content[:16]}"
