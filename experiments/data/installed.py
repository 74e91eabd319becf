"""All Python sources installed on a machine: real text, no download, 100 MB or more.

They are those of the standard library, of site-packages and of the system's own Python.
A content counts once, however often it is installed. The order is that of the names
below their root, and a hash of the name decides which files are held out, so files of
one name in two versions are on one side.
"""

import hashlib
import os
import pathlib
import sys
import sysconfig
from collections.abc import Iterator, Sequence

from experiments.data import shards, tokenizer
from experiments.data.stdlib import held_out
from experiments.data.windows import Corpus

# BPE learns from one file in so many: more text changes few merges, and takes longer.
_BPE_SHARE = 4


def roots() -> list[pathlib.Path]:
    """Where Python sources are installed."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    found = [pathlib.Path(path) for path in paths]
    for parent in (pathlib.Path("/usr/lib"), pathlib.Path("/usr/local/lib")):
        found += sorted(parent.glob("python3*"))
    return list(dict.fromkeys(path.resolve() for path in found if path.is_dir()))


def sources(folders: Sequence[pathlib.Path]) -> Iterator[tuple[str, str]]:
    """Name and text of every source, each content once, in the order of the names."""
    found = []
    for folder in folders:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).parts
            # A package has one name, whichever interpreter it belongs to.
            inner = [i for i, part in enumerate(parts) if part.endswith("-packages")]
            found.append(("/".join(parts[inner[-1] + 1 if inner else 0 :]), path))
    seen = set()
    for name, path in sorted(found):
        try:
            content = path.read_bytes()
        except OSError:  # a dangling link, or not ours to read
            continue
        digest = hashlib.sha256(content).digest()
        if content and b"\0" not in content and digest not in seen:
            seen.add(digest)
            yield name, content.decode(errors="replace")


def load(
    cache: str | None = None,
    vocab_size: int | None = None,
    folders: Sequence[pathlib.Path] | None = None,
) -> Corpus:
    """The corpus, from its cache; the first call prepares that, which takes a while.

    What is installed later does not change a cache: runs stay comparable until someone
    removes the folder.

    Args:
      cache: the folder, by default below `$XDG_CACHE_HOME/optlab`.
      vocab_size: of BPE to train on these sources; bytes by default.
      folders: where to look, by default in `roots()`.

    Raises:
      ValueError: if there are too few sources, or the cache holds another vocabulary.
    """
    kind = f"bpe_{vocab_size}" if vocab_size else "bytes"
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = pathlib.Path(cache) if cache else home / "optlab" / f"installed_{kind}"
    if not folder.exists():
        _prepare(folder, vocab_size, roots() if folders is None else folders)
    corpus = shards.load(str(folder))
    if vocab_size and corpus.vocab_size > vocab_size:
        raise ValueError(
            f"task.vocab_size: given {vocab_size}, but {folder} holds "
            f"{corpus.vocab_size} tokens"
        )
    return corpus


def _prepare(
    folder: pathlib.Path, vocab_size: int | None, folders: Sequence[pathlib.Path]
) -> None:
    if vocab_size:
        tokenizer.check_bpe_size(vocab_size, "task.vocab_size")
    print(f"preparing {folder} from the installed sources, once", file=sys.stderr)
    if vocab_size:
        sample = (
            text
            for i, (name, text) in enumerate(sources(folders))
            if not held_out(name) and i % _BPE_SHARE == 0
        )
        encoder = tokenizer.train(sample, vocab_size, "task.vocab_size")
    else:
        encoder = tokenizer.Bytes()
    pieces = (shards.Piece(text, held_out(name)) for name, text in sources(folders))
    try:
        shards.write(folder, pieces, encoder, source="installed Python sources")
    except OSError as error:
        # Another process may have been first, and has made the same.
        if not folder.exists():
            reason = f"{error.filename}: {error.strerror}"
            raise ValueError(f"task.path: {reason}") from error
