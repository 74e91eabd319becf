"""A Hugging Face data set, streamed: documents are tokenised as they come.

Documents are packed into windows one after another, each ended by the tokenizer's
token; windows are shuffled among their neighbours. Files come in their own order.
"""

import atexit
import collections
import copy
import hashlib
import logging
import pathlib
import weakref
from typing import Any

import grain
import numpy as np

from experiments.data import digests
from experiments.data.order import Process
from experiments.data.tokenizer import Bytes, Tokenizer
from experiments.errors import UserError

# Windows that are shuffled together, and read again when a run resumes.
_SHUFFLED = 512
# Documents that are tokenised together.
_CHUNK = 64
# Documents held out where a data set has no validation split.
_HELD_OUT = 2000
_EVAL_SPLITS = ("validation", "valid", "val", "test")


def read(path: str, subset: str | None = None) -> Any:
    """The streamed splits of a data set.

    Args:
      path: its name on the hub, or a folder of json, parquet, csv or text files whose
        names say their split.
      subset: its configuration, such as `en`.

    Raises:
      ValueError: naming `task.path`, with the library's own reason.
    """
    # Its information, printed as logs by absl, would bury the one line of an error.
    for name in ("datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import datasets

    try:
        return datasets.load_dataset(path, subset, streaming=True)
    except Exception as error:  # connection, permission, format: all are the user's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"task.path: {path!r} does not load: {reason}") from error


def text_of(record: dict[str, Any], field: str, source: str) -> str:
    """The text of a record.

    Raises:
      UserError: naming `source`, if its column holds something else.
    """
    if not isinstance(record[field], str):
        kind = type(record[field]).__name__
        raise UserError(f"{source}: given {field!r}, which holds a {kind}, not text")
    return record[field]


class Stream:
    """A corpus that is read from its beginning to its end, again and again.

    `digest` names what is read (data set, subset, tokenizer). The contents are part of
    it where they are files at hand, and `files` has a hash of each.
    """

    def __init__(
        self,
        path: str,
        subset: str | None,
        text_field: str,
        tokenizer: Bytes | Tokenizer,
        held_out: int = _HELD_OUT,
    ):
        """Opens the data set.

        Args:
          path: as in `read`.
          subset: as in `read`.
          text_field: the column to read.
          tokenizer: text to numbers.
          held_out: first documents of the training split, for validation where there
            is no split for that.

        Raises:
          ValueError: naming the field that is wrong.
        """
        splits = read(path, subset)
        if "train" not in splits:
            raise ValueError(f"task.path: {path!r} has no split train, but {[*splits]}")
        self._train = splits["train"]
        evaluation = next((name for name in _EVAL_SPLITS if name in splits), None)
        if evaluation:
            self._validation = splits[evaluation]
        else:
            self._validation = self._train.take(held_out)
            self._train = self._train.skip(held_out)
        for split in (self._train, self._validation):
            # Of a copy: a data set keeps its position.
            first = next(iter(copy.deepcopy(split)), None)
            if first is None:
                raise ValueError(
                    f"task.path: {path!r} has too few documents, allowed "
                    f"more than {held_out} without a split for validation"
                )
            if text_field not in first:
                raise ValueError(
                    f"task.text_field: given {text_field!r}, {path!r} has "
                    f"{', '.join(first)}"
                )
        self._field = text_field
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        named = [path, subset, text_field, evaluation, tokenizer.digest]
        self.files: dict[str, str] = {}
        folder = pathlib.Path(path)
        if folder.is_dir():
            files = [file for file in folder.rglob("*") if file.is_file()]
            by_name = {str(file.relative_to(folder)): file for file in files}
            named.append(digests.digest(by_name))
            self.files = digests.by_file(by_name)
        self.digest = hashlib.sha256(repr(named).encode()).hexdigest()

    def train_batches(
        self, length: int, batch_size: int, seed: int, process: Process | None = None
    ) -> grain.DatasetIterator:
        """Endless batches `(rows, length)`; `get_state`, `set_state` resume exactly.

        Args:
          length: tokens in a window.
          batch_size: windows in a batch of all processes.
          seed: of the shuffling among neighbours.
          process: whose share to read, by default that of the process that asks. The
            documents are shared out, so a run resumes with as many processes only.

        Raises:
          ValueError: if the batch cannot be shared out.
        """
        process = process or Process.this()
        rows = process.rows(batch_size)
        windows = _Packed(self._train, self._field, self._tokenizer, length, process)
        shuffled = grain.experimental.WindowShuffleIterDataset(
            windows, window_size=_SHUFFLED, seed=seed
        )
        batches = shuffled.batch(rows.stop - rows.start)
        ahead = iter(
            grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=2
            )
        )
        # A thread in the tokenizer's native code would abort the process at its end.
        atexit.register(_close, weakref.ref(ahead))
        return ahead

    def eval_batches(
        self, length: int, batch_size: int, count: int
    ) -> list[np.ndarray]:
        """The first `count` validation windows, as arrays `(batch_size, length)`.

        Raises:
          ValueError: if there are not as many.
        """
        packed = _Packed(
            self._validation, self._field, self._tokenizer, length, Process(0, 1)
        )
        windows = iter(packed)
        chosen = []
        for _ in range(count):
            chosen.append(next(windows))
            if windows.epoch:
                raise ValueError(
                    f"task.eval_windows: given {count}, validation has "
                    f"{len(chosen) - 1} of {length - 1} tokens"
                )
        return list(np.stack(chosen).reshape(-1, batch_size, length))


def _close(iterator: weakref.ref) -> None:
    if iterator() is not None:
        iterator().close()


class _Packed(grain.IterDataset):
    """The windows of all documents of one process, epoch after epoch."""

    def __init__(self, split, field, tokenizer, length, process: Process):
        super().__init__()
        self._arguments = (split, field, tokenizer, length, process)

    def __iter__(self) -> "_PackedIterator":
        return _PackedIterator(*self._arguments)


class _PackedIterator(grain.DatasetIterator):
    """Its state is where the chunk of documents began that the next window begins in.

    Neighbouring windows share one token: the last target of one is the first input of
    the next.
    """

    def __init__(self, split, field, tokenizer, length, process: Process):
        super().__init__()
        # Position is kept in the data set: a copy, so that iterators do not share it.
        split = copy.deepcopy(split)
        if process.count > 1:
            from datasets.distributed import split_dataset_by_node

            split = split_dataset_by_node(split, process.index, process.count)
        self._split = split
        self._beginning = split.state_dict()
        self._field, self._tokenizer = field, tokenizer
        self._end = np.array([tokenizer.end], np.uint16)
        self._length, self._processes = length, process.count
        self._go_to(0, self._beginning)

    def _go_to(self, epoch: int, documents: dict) -> None:
        self.epoch = epoch
        # (epoch, state of the documents before the chunk, tokens of the chunk)
        self._chunks: collections.deque = collections.deque()
        self._offset = self._available = 0
        self._open(documents)

    def _open(self, documents: dict) -> None:
        self._split.load_state_dict(documents)
        self._documents = iter(self._split)
        # The data set itself says so only once it is read from.
        self._position = documents

    def _read(self) -> None:
        """Appends the tokens of the next documents."""
        before = self._position
        records = [
            record for _, record in zip(range(_CHUNK), self._documents, strict=False)
        ]
        if not records:
            if before == self._beginning:
                raise ValueError("task.path: a process has no document to read")
            self.epoch += 1
            self._open(self._beginning)
            return
        self._position = self._split.state_dict()
        texts = [text_of(record, self._field, "task.text_field") for record in records]
        encoded = self._tokenizer.encode(texts)
        tokens = np.concatenate([part for one in encoded for part in (one, self._end)])
        self._chunks.append((self.epoch, before, tokens))
        self._available += len(tokens)

    def __next__(self) -> np.ndarray:
        while self._available < self._length:
            self._read()
        parts = [tokens for _, _, tokens in self._chunks]
        window = np.concatenate([parts[0][self._offset :], *parts[1:]])
        self._offset += self._length - 1
        self._available -= self._length - 1
        while self._chunks and self._offset >= len(self._chunks[0][2]):
            self._offset -= len(self._chunks.popleft()[2])
        return window[: self._length]

    def get_state(self) -> dict:
        if self._chunks:
            epoch, documents, _ = self._chunks[0]
        else:
            epoch, documents = self.epoch, self._position
        return {
            "epoch": epoch,
            "documents": documents,
            "offset": self._offset,
            "processes": self._processes,
        }

    def set_state(self, state: dict) -> None:
        if state["processes"] != self._processes:
            raise ValueError(
                f"the stream was read by {state['processes']} processes, not "
                f"{self._processes}: it goes on with as many only"
            )
        self._go_to(state["epoch"], state["documents"])
        # The first chunk is never empty: its first document has an end.
        while not self._chunks:
            self._read()
        self._offset = state["offset"]
        self._available -= self._offset
