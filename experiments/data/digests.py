"""What files hold, told cheaply enough to ask at every start.

Up to `WHOLE` bytes altogether they are hashed whole. Of more, each file's size, its
time of change and blocks spread over it are: any write to a file is seen, by its time,
and a copy that keeps times is the same data.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

# Bytes that are read whole: less than a second.
WHOLE = 2**28
# Blocks of all files together; each has two at least, its ends.
BLOCKS = 1024
BLOCK_BYTES = 2**16


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


def digest(files: Mapping[str, pathlib.Path]) -> str:
    """A hash of all files by name, as the module says."""
    small = is_small(list(files.values()))
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        status = os.stat(file)
        total.update(f"{name} {status.st_size}\n".encode())
        if small:
            total.update(file.read_bytes())
        elif status.st_size:
            total.update(f"{status.st_mtime_ns}\n".encode())
            for block in samples(np.memmap(file, np.uint8, mode="r"), len(files)):
                total.update(block)
    return total.hexdigest()
