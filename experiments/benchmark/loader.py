"""How fast batches come, without a model: tokens a second of one process."""

import pathlib
import tempfile
import time

import numpy as np

from experiments.benchmark import table
from experiments.data import shards, stdlib
from experiments.data.windows import Corpus

COLUMNS = ("tokens from", "batch", "M tokens/s")
_TOKENS = 40_000_000
_VOCABULARY = 32_000
_SECONDS = 3
# Windows and their length, a target more than the context.
_BATCHES = ((512, 257), (480, 1025), (16, 129))


def _speed(corpus: Corpus, windows: int, length: int) -> float:
    """Millions of tokens a second, after the first batches."""
    batches = corpus.train_batches(length, windows, seed=0)
    for _ in range(3):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        next(batches)
        count += 1
    return count * windows * length / (time.perf_counter() - start) / 1e6


def run(out: pathlib.Path) -> int:
    """Writes loader.csv and loader.md into `out`, and prints the table."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("train", _TOKENS), ("val", 100_000)):
            tokens = rng.integers(_VOCABULARY, size=count, dtype=np.uint16)
            tokens.tofile(pathlib.Path(folder) / f"{name}.bin")
        corpora = {
            f"shards, {_TOKENS / 1e6:.0f} M tokens": shards.load(folder, _VOCABULARY),
            "stdlib, bytes": stdlib.load(),
        }
        rows = [
            (name, f"{windows}x{length}", f"{_speed(corpus, windows, length):.1f}")
            for name, corpus in corpora.items()
            for windows, length in _BATCHES
        ]
    heading = (
        "Made by `python -m experiments.benchmark --suite=loader`: shuffled windows as "
        "training reads\nthem, from files that the machine holds in memory."
    )
    table.write(out / "loader", heading, COLUMNS, rows)
    return 0
