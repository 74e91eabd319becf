"""Windows of a long token array, as batches in an order fixed by the seed."""

import grain
import numpy as np


class Windows:
    """Every run of `length` consecutive tokens, one per starting place."""

    def __init__(self, tokens: np.ndarray, length: int):
        if len(tokens) < length:
            raise ValueError(
                f"task.context: {length - 1} leaves no window in {len(tokens)} tokens"
            )
        self._tokens = tokens
        self._length = length

    def __len__(self) -> int:
        return len(self._tokens) - self._length + 1

    def __getitem__(self, start: int) -> np.ndarray:
        return self._tokens[start : start + self._length]


def random_batches(
    tokens: np.ndarray, length: int, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Batches of windows, each starting place once per epoch, without end.

    Args:
      tokens: `(n,)` integers, in memory or memory-mapped.
      length: tokens in a window.
      batch_size: windows in a batch.
      seed: decides the order.

    Returns:
      A grain iterator over `(batch_size, length)` arrays. `get_state()` is a small
      dictionary, and `set_state` resumes at the very next batch.
    """
    windows = grain.MapDataset.source(Windows(tokens, length))
    shuffled = windows.shuffle(seed=seed).repeat().batch(batch_size)
    # Slicing costs microseconds: threads and read-ahead would only take a core away.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(shuffled.to_iter_dataset(options))


def even_batches(
    tokens: np.ndarray, length: int, batch_size: int, count: int
) -> list[np.ndarray]:
    """`count` windows spread evenly over `tokens`: the same ones in every run.

    Args:
      tokens: `(n,)` integers.
      length: tokens in a window.
      batch_size: windows in a batch; must divide `count`.
      count: windows altogether.

    Returns:
      `count / batch_size` arrays `(batch_size, length)`.
    """
    windows = Windows(tokens, length)
    starts = np.linspace(0, len(windows) - 1, count).astype(int)
    chosen = np.stack([windows[start] for start in starts])
    return list(chosen.reshape(-1, batch_size, length))
