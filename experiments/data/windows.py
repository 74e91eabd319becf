"""Windows of long token arrays, and the corpus that is read through them."""

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from experiments.data.digests import digest_of
from experiments.data.order import Process, shuffled_batches
from experiments.errors import UserError

# grain's permutation of example numbers is one of 32-bit integers.
_MOST_WINDOWS = 2**32 - 1


class Windows:
    """The runs of `length` consecutive tokens, numbered; none crosses two parts.

    There is one per starting place. Where these are more than `most`, only every
    second, third, ... place counts, until they are few enough.

    Args:
      parts: arrays of tokens.
      length: of a window.
      most: windows.
      vocab_size: above every token. What is read of mapped files is checked; arrays in
        memory are made by code.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        length: int,
        most: int = _MOST_WINDOWS,
        *,
        vocab_size: int = 2**16,
    ):
        self._vocab_size = vocab_size
        self._files = [getattr(part, "filename", None) for part in parts]
        places = np.array([max(0, len(part) - length + 1) for part in parts], np.int64)
        total = int(places.sum())
        if not total:
            longest = max((len(part) for part in parts), default=0)
            raise ValueError(
                f"task.context: {length - 1} leaves no window in {longest} tokens"
            )
        self._ends = np.cumsum(places)
        self._stride = -(-total // most)
        self._count = -(-total // self._stride)
        self._length = length
        # A view: row i is the window that starts at token i.
        self._rows = [
            np.lib.stride_tricks.sliding_window_view(part, length)
            if len(part) >= length
            else None
            for part in parts
        ]

    def __len__(self) -> int:
        return self._count

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """The windows `(n, length)` of the given numbers `(n,)`.

        Raises:
          UserError: if a token is none of the vocabulary.
        """
        places = numbers.astype(np.int64) * self._stride
        parts = np.searchsorted(self._ends, places, side="right")
        out = None
        for part in np.unique(parts):
            rows = self._rows[part]
            start = self._ends[part - 1] if part else 0
            here = parts == part
            found = rows[places[here] - start]
            self._check(found, part)
            if here.all():
                return found
            if out is None:
                out = np.empty((len(numbers), self._length), rows.dtype)
            out[here] = found
        return out

    def _check(self, tokens: np.ndarray, part: int) -> None:
        file = self._files[part]
        if file is not None and (largest := tokens.max()) >= self._vocab_size:
            raise UserError(
                f"task.vocab_size: {self._vocab_size} tokens, but {file} holds "
                f"{largest}"
            )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens at hand: parts (files, shards) to train on and to validate.

    `digest` is a hash of the contents, made of the arrays if none is given. `files` has
    one of each file that may change, by its name. Tokens that are none of the
    vocabulary are refused: in memory at once, in every batch of mapped files on the
    host and before the step.
    """

    train: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]
    vocab_size: int
    digest: str = dataclasses.field(default="", kw_only=True)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)

    def __post_init__(self):
        for part in (*self.train, *self.validation):
            if getattr(part, "filename", None) is None and part.size:
                low, high = int(part.min()), int(part.max())
                if low < 0 or high >= self.vocab_size:
                    raise ValueError(
                        f"task.data: tokens from {low} to {high}, allowed 0 to "
                        f"{self.vocab_size - 1}"
                    )
        made = self.digest or digest_of(*self.train, *self.validation)
        object.__setattr__(self, "digest", made)

    def train_batches(
        self, length: int, batch_size: int, seed: int, process: Process | None = None
    ) -> grain.DatasetIterator:
        """Endless batches `(rows, length)` of random windows of the training parts.

        Args:
          length: tokens in a window.
          batch_size: windows in a batch of all processes.
          seed: decides the order.
          process: whose rows to read, by default those of the process that asks.

        Raises:
          ValueError: if no window is so short, or the batch cannot be shared out.
        """
        windows = Windows(self.train, length, vocab_size=self.vocab_size)
        return shuffled_batches(len(windows), windows.gather, batch_size, seed, process)

    def eval_batches(
        self, length: int, batch_size: int, count: int
    ) -> list[np.ndarray]:
        """`count` validation windows spread evenly: the same ones in every run.

        Args:
          length: tokens in a window.
          batch_size: windows in a batch; must divide `count`.
          count: windows altogether.

        Returns:
          `count / batch_size` arrays `(batch_size, length)`.

        Raises:
          ValueError: if no window is so short.
        """
        windows = Windows(self.validation, length, vocab_size=self.vocab_size)
        numbers = np.linspace(0, len(windows) - 1, count).astype(np.int64)
        return list(windows.gather(numbers).reshape(-1, batch_size, length))
