"""A folder of `uint16` token shards, memory-mapped, as nanoGPT writes them.

`train*.bin` and `val*.bin` are bare little-endian token numbers. Beside them
`experiments.prepare` writes `meta.json` (vocabulary, digest, size and sha256 of
each shard) and `tokenizer.json`; a folder without them is read too, given
`task.vocab_size`.

Where `meta.json` is, its digest counts, and each shard must have its sha256: all are
read at every start where they are small together (`digests.WHOLE`), else those that are
newer than `meta.json`. Without it `digests.digest` says whether they have changed.
"""

import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.data import digests
from experiments.data.tokenizer import Bytes, Tokenizer, check_vocab_size
from experiments.data.windows import Corpus

_DTYPE = np.dtype("<u2")
_ENCODED_AT_ONCE = 256


class Piece(NamedTuple):
    """A piece of a document; `last` where the document ends with it."""

    text: str
    held_out: bool
    last: bool = True


class _Shards:
    """Writes one split; a shard is closed after the piece that fills it."""

    def __init__(self, folder: pathlib.Path, split: str, shard_tokens: int):
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._file = None
        self.written: dict[str, dict] = {}

    def add(self, tokens: np.ndarray) -> None:
        if self._file is None:
            name = f"{self._split}_{len(self.written):05}.bin"
            self._file = (self._folder / name).open("wb")
            self._hash, self._size = hashlib.sha256(), 0
        content = tokens.astype(_DTYPE).tobytes()
        with _named(self._file.name):
            self._file.write(content)
        self._hash.update(content)
        self._size += len(tokens)
        if self._size >= self._limit:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            name = pathlib.Path(self._file.name).name
            with _named(self._file.name):
                self._file.close()
            self._file = None
            sha256 = self._hash.hexdigest()
            self.written[name] = {"tokens": self._size, "sha256": sha256}

    def abandon(self) -> None:
        """Closes a file that an error has left open; what it holds is of no use."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


@contextlib.contextmanager
def _named(path: str | pathlib.Path) -> Iterator[None]:
    """Errors of writing name the file; the system names it only where it opens one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write(
    folder: pathlib.Path,
    pieces: Iterable[Piece],
    tokenizer: Bytes | Tokenizer,
    *,
    source: str,
    shard_tokens: int = 100_000_000,
) -> dict:
    """Tokenises pieces of text into a new folder, which is there whole or not at all.

    Args:
      folder: to make.
      pieces: in order; the end of a document is marked by the tokenizer's token.
      tokenizer: text to numbers.
      source: what the text is, for the record.
      shard_tokens: a shard is closed once it has as many.

    Returns:
      The content of `meta.json`.

    Raises:
      ValueError: if there is nothing to train on or nothing to validate.
    """
    _remove_abandoned(folder)
    # A name for each process: two may prepare the same folder at once.
    made = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    made.mkdir(parents=True)
    with _signals_raise(), _locked(made):
        try:
            shards = _write_splits(made, pieces, tokenizer, shard_tokens, source)
            meta = {
                "vocab_size": tokenizer.vocab_size,
                "tokenizer": tokenizer.name,
                "source": source,
                "digest": _digest(shards),
                "shards": shards,
            }
            with _named(made / "tokenizer.json"):
                tokenizer.save(made)
            with _named(made / "meta.json"):
                (made / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
            made.replace(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return meta


def _lock(descriptor: int) -> bool:
    """Locks a folder for as long as the process lives, unless another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or a network file system that locks no folders
        return False
    return True


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what processes that were killed have left of the same folder."""
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*.new"):
        descriptor = os.open(left, os.O_RDONLY)
        try:
            if _lock(descriptor):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process as an exception does, which cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        del frame
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_splits(folder, pieces, tokenizer, shard_tokens, source) -> dict[str, dict]:
    splits = {name: _Shards(folder, name, shard_tokens) for name in ("train", "val")}
    try:
        return _fill(splits, pieces, tokenizer, source)
    finally:
        for split in splits.values():
            split.abandon()


def _fill(splits, pieces, tokenizer, source) -> dict[str, dict]:
    end = np.array([tokenizer.end], np.uint16)
    remaining = iter(pieces)
    while batch := list(itertools.islice(remaining, _ENCODED_AT_ONCE)):
        encoded = tokenizer.encode([piece.text for piece in batch])
        for piece, tokens in zip(batch, encoded, strict=True):
            whole = np.concatenate([tokens, end]) if piece.last else tokens
            splits["val" if piece.held_out else "train"].add(whole)
    for name, split in splits.items():
        split.close()
        if not split.written:
            raise ValueError(f"{source}: too few pieces of text to fill {name}*.bin")
    return splits["train"].written | splits["val"].written


def _digest(shards: dict[str, dict]) -> str:
    lines = [f"{name} {shards[name]['sha256']}\n" for name in sorted(shards)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load(path: str, vocab_size: int | None = None) -> Corpus:
    """Maps a folder's shards into memory, and checks them as the module says.

    Args:
      path: the folder.
      vocab_size: number of tokens, where no `meta.json` says it; a larger one than
        that of `meta.json` pads the model's table.

    Raises:
      ValueError: naming the field or file that is wrong.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(f"task.path: no folder {path!r} of token shards")
    parts = {split: dict(_map(folder, split)) for split in ("train", "val")}
    for split, found in parts.items():
        if not found:
            raise ValueError(f"task.path: {path} has no {split}*.bin")
    everything = parts["train"] | parts["val"]
    meta = _read_meta(folder, everything)
    if meta is None and vocab_size is None:
        raise ValueError(
            f"task.vocab_size: missing, and {path} has no meta.json that says it"
        )
    known = 0 if meta is None else meta["vocab_size"]
    if vocab_size is not None and vocab_size < known:
        raise ValueError(
            f"task.vocab_size: given {vocab_size}, allowed {known} or more for {path}"
        )
    size = vocab_size or known
    check_vocab_size(size, "task.vocab_size" if vocab_size else f"{path}/meta.json")
    files = {name: folder / name for name in everything}
    small = digests.is_small(list(files.values()))
    for name, tokens in everything.items():
        blocks = [tokens] if small else digests.samples(tokens, len(files))
        largest = max(int(block.max()) for block in blocks)
        if largest >= size:
            raise ValueError(
                f"task.vocab_size: {size} tokens, but {files[name]} holds {largest}"
            )
    return Corpus(
        train=tuple(parts["train"].values()),
        validation=tuple(parts["val"].values()),
        vocab_size=size,
        digest=digests.digest(files) if meta is None else meta["digest"],
        files=(
            digests.by_file(files)
            if meta is None
            else digests.by_hash(files, meta["hashes"])
        ),
    )


def _map(folder: pathlib.Path, split: str) -> Iterator[tuple[str, np.ndarray]]:
    for file in sorted(folder.glob(f"{split}*.bin")):
        size = file.stat().st_size
        if not size or size % _DTYPE.itemsize:
            raise ValueError(f"task.path: {file} of {size} bytes is no uint16 array")
        yield file.name, np.memmap(file, _DTYPE, mode="r")


def _read_meta(folder: pathlib.Path, parts: dict[str, np.ndarray]) -> dict | None:
    file = folder / "meta.json"
    if not file.exists():
        return None
    try:
        meta = json.loads(file.read_text())
        sizes = {name: shard["tokens"] for name, shard in meta["shards"].items()}
        hashes = {name: shard.get("sha256") for name, shard in meta["shards"].items()}
        meta = {"vocab_size": int(meta["vocab_size"]), "digest": str(meta["digest"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"task.path: {file} is damaged ({error!r})") from error
    small = digests.is_small([folder / name for name in parts])
    for name in sorted(sizes.keys() | parts.keys()):
        there = len(parts[name]) if name in parts else 0
        if there != sizes.get(name, 0):
            raise ValueError(
                f"task.path: {folder / name} has {there:,} tokens, meta.json says "
                f"{sizes.get(name, 0):,}"
            )
        newer = (folder / name).stat().st_mtime_ns > file.stat().st_mtime_ns
        read = hashes[name] and (small or newer)
        if read and hashlib.sha256(parts[name]).hexdigest() != hashes[name]:
            raise ValueError(
                f"task.path: {folder / name} was changed: its sha256 is not that of "
                "meta.json"
            )
    return meta | {"hashes": hashes}
