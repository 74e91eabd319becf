"""In which order examples come, and which of them a process reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

# More examples than any run reads.
_MANY = 2**48


class Process(NamedTuple):
    """One of the processes that share every batch."""

    index: int
    count: int

    @classmethod
    def this(cls) -> "Process":
        """The process that asks, among those that jax knows."""
        return cls(jax.process_index(), jax.process_count())

    def rows(self, batch_size: int) -> slice:
        """Which rows of a batch of all processes are this one's.

        Raises:
          ValueError: if the rows cannot be shared out evenly.
        """
        if batch_size % self.count:
            raise ValueError(
                f"train.batch_size: given {batch_size}, allowed a multiple of the "
                f"{self.count} processes"
            )
        share = batch_size // self.count
        return slice(self.index * share, (self.index + 1) * share)


def shuffled_batches(
    count: int,
    gather: Callable[[np.ndarray], Any],
    batch_size: int,
    seed: int,
    process: Process | None = None,
) -> grain.DatasetIterator:
    """Batches of examples, each example once per epoch, without end.

    A batch of all processes together has the same rows whatever their number, so a run
    may go on with more or fewer of them.

    Args:
      count: number of examples, below 2^32.
      gather: `(n,)` example numbers -> their batch, any tree of arrays.
      batch_size: examples in a batch of all processes.
      seed: decides the order; every epoch has another order.
      process: whose rows to read, by default those of the process that asks.

    Returns:
      A grain iterator. `get_state()` is `{"next_index": batches so far}`, and
      `set_state` goes on with the very next batch.

    Raises:
      ValueError: if the processes cannot share a batch, or the seed is out of range.
    """
    numbers = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
    return _batches(numbers, gather, batch_size, process)


def ordered_batches(
    gather: Callable[[np.ndarray], Any],
    batch_size: int,
    process: Process | None = None,
) -> grain.DatasetIterator:
    """Batches of examples that the caller puts in order, without end.

    Args:
      gather: `(n,)` places in the order, from 0 -> their batch, any tree of arrays.
      batch_size: as of `shuffled_batches`.
      process: likewise.

    Returns:
      A grain iterator, as of `shuffled_batches`.

    Raises:
      ValueError: if the processes cannot share a batch.
    """
    return _batches(grain.MapDataset.range(_MANY), gather, batch_size, process)


def _batches(
    numbers: grain.MapDataset,
    gather: Callable[[np.ndarray], Any],
    batch_size: int,
    process: Process | None,
) -> grain.DatasetIterator:
    rows = (process or Process.this()).rows(batch_size)
    # What is without end has no remainder; rounded up, batches of one are too many.
    batches = numbers.batch(batch_size, drop_remainder=True)
    batches = batches.map(lambda chosen: gather(chosen[rows]))
    # One thread is far ahead of any device, and hides what a cold disk takes.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(batches.to_iter_dataset(options))
