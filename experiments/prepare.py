"""Tokenises text into a folder of token shards for `task.data=shards`.

    python -m experiments.prepare --output=data/books --files='books/*.txt'
    python -m experiments.prepare --output=data/c4 --dataset=allenai/c4 \\
        --subset=en --validation_split=validation --limit=2000000 --tokenizer=t5.json

Without `--tokenizer` byte-level BPE is trained on the text first. The folder appears
when it is whole.
"""

import glob
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from absl import flags

from experiments import command
from experiments.data import shards, stream, tokenizer
from experiments.data.shards import Piece
from experiments.errors import UserError

_FLAGS = flags.FlagValues()
_OUTPUT = command.define_path("output", "the folder to make", _FLAGS)
_FILES = flags.DEFINE_list(
    "files", [], "text files, as comma-separated patterns", flag_values=_FLAGS
)
_DATASET = command.define_path(
    "dataset", "Hugging Face data set, or a folder of its files", _FLAGS
)
_SUBSET = flags.DEFINE_string(
    "subset", None, "its configuration, such as en", flag_values=_FLAGS
)
_SPLIT = flags.DEFINE_string(
    "split", "train", "its split to train on", flag_values=_FLAGS
)
_VALIDATION_SPLIT = flags.DEFINE_string(
    "validation_split",
    None,
    "its split to validate on; else every n-th document",
    flag_values=_FLAGS,
)
_TEXT_FIELD = flags.DEFINE_string(
    "text_field", "text", "its column to read", flag_values=_FLAGS
)
_LIMIT = flags.DEFINE_integer(
    "limit",
    None,
    "documents (of files: pieces of 64 KB) to take of each split",
    flag_values=_FLAGS,
)
_TOKENIZER = command.define_path(
    "tokenizer", "a tokenizer.json, or bytes; by default BPE is trained", _FLAGS
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 32_000, "tokens of the BPE to train", flag_values=_FLAGS
)
_BPE_CHARACTERS = flags.DEFINE_integer(
    "bpe_characters", 200_000_000, "characters to train the BPE on", flag_values=_FLAGS
)
_VALIDATION_EVERY = flags.DEFINE_integer(
    "validation_every", 100, "one document in so many is held out", flag_values=_FLAGS
)
_SHARD_TOKENS = flags.DEFINE_integer(
    "shard_tokens", 100_000_000, "tokens in a shard", flag_values=_FLAGS
)
_PIECE_BYTES = 2**16


# How formats begin that may hold long runs of text.
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
}
_CONTROL = set(map(chr, range(32))) - set("\t\n\r\f\b\x1b") | {"\ufffd"}


def _refuse_binary(path: str) -> None:
    with open(path, "rb") as file:
        head = file.read(_PIECE_BYTES)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"--files: {path} is a {kind} file, allowed UTF-8 text")
    text = head.decode(errors="replace")
    if sum(character in _CONTROL for character in text) > len(text) / 10:
        raise UserError(f"--files: {path} is no UTF-8 text")


def _file_pieces(paths: Iterable[str], every: int) -> Iterator[Piece]:
    """Pieces of files, cut at line ends, every n-th of them held out."""
    number = itertools.count(1)
    for path in paths:
        _refuse_binary(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.readlines(_PIECE_BYTES)
            while lines:
                following = file.readlines(_PIECE_BYTES)
                text, held_out = "".join(lines), next(number) % every == 0
                yield Piece(text, held_out, last=not following)
                lines = following


def _dataset_pieces(
    splits: dict, train: str, validation: str | None, field: str, every: int
) -> Iterator[Piece]:
    """Documents of a data set."""
    limit = _LIMIT.value
    for i, record in enumerate(itertools.islice(splits[train], limit), 1):
        text = stream.text_of(record, field, "--text_field")
        yield Piece(text, held_out=validation is None and i % every == 0)
    if validation is not None:
        for record in itertools.islice(splits[validation], limit):
            text = stream.text_of(record, field, "--text_field")
            yield Piece(text, held_out=True)


def _source() -> tuple[str, Callable[[], Iterator[Piece]]]:
    """What the text is, and what reads it from its beginning."""
    every = _VALIDATION_EVERY.value
    if bool(_FILES.value) == bool(_DATASET.value):
        raise UserError("--files, --dataset: one of them is needed, and only one")
    if _FILES.value:
        paths = sorted(
            {
                path
                for word in _FILES.value
                for path in glob.glob(os.path.expanduser(word))
            }
        )
        if not paths:
            raise UserError(f"--files: no file matches {','.join(_FILES.value)}")
        name = ",".join(_FILES.value)
        return name, lambda: itertools.islice(_file_pieces(paths, every), _LIMIT.value)
    splits = stream.read(_DATASET.value, _SUBSET.value)
    field = _TEXT_FIELD.value
    for flag in (_SPLIT, _VALIDATION_SPLIT):
        if flag.value is None:
            continue
        if flag.value not in splits:
            raise UserError(
                f"--{flag.name}: given {flag.value!r}, allowed {', '.join(splits)}"
            )
        first = next(iter(splits[flag.value]), {})
        if field not in first:
            raise UserError(
                f"--text_field: given {field!r}, allowed {', '.join(first)}"
            )
    name = "/".join(filter(None, [_DATASET.value, _SUBSET.value, _SPLIT.value]))
    return name, lambda: _dataset_pieces(
        splits, _SPLIT.value, _VALIDATION_SPLIT.value, field, every
    )


def _first_characters(pieces: Iterable[Piece], most: int) -> Iterator[str]:
    for piece in pieces:
        if not piece.held_out:
            yield piece.text
            most -= len(piece.text)
            if most <= 0:
                return


def _encoder(pieces: Iterable[Piece]) -> tokenizer.Bytes | tokenizer.Tokenizer:
    if _TOKENIZER.value == "bytes":
        return tokenizer.Bytes()
    if _TOKENIZER.value:
        return tokenizer.load(_TOKENIZER.value, "--tokenizer")
    sample = _first_characters(pieces, _BPE_CHARACTERS.value)
    return tokenizer.train(sample, _VOCAB_SIZE.value, "--vocab_size")


def main(positional: list[str], overrides: list[str]) -> int:
    """Makes the folder, and says what it holds."""
    command.no_arguments(positional, overrides)
    command.require(output=_OUTPUT.value)
    for flag in (_LIMIT, _BPE_CHARACTERS, _VALIDATION_EVERY, _SHARD_TOKENS):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name}: given {flag.value}, allowed 1 or more")
    folder = pathlib.Path(_OUTPUT.value)
    if folder.exists():
        raise UserError(f"--output: {folder} exists already")
    try:
        # Before the long work, and before anything is written.
        tokenizer.check_bpe_size(_VOCAB_SIZE.value, "--vocab_size")
        name, pieces = _source()
        meta = shards.write(
            folder,
            pieces(),
            _encoder(pieces()),
            source=name,
            shard_tokens=_SHARD_TOKENS.value,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror or error}") from error
    for split in ("train", "val"):
        sizes = [
            shard["tokens"]
            for shard_name, shard in meta["shards"].items()
            if shard_name.startswith(split)
        ]
        print(f"{split}: {sum(sizes):,} tokens in {len(sizes)} shards")
    print(f"{folder}: {meta['vocab_size']:,} tokens in the vocabulary")
    return 0


if __name__ == "__main__":
    command.run(main, _FLAGS)
