"""Whether a worker still gets on with its point, by the files that it writes."""

import pathlib
import time

# A start reads data and compiles; nothing is known of how long that takes.
START_SECONDS = 1800.0
# After its first record a worker may be silent for so many times its longest pause,
# which evaluations and checkpoints are part of.
PAUSES = 20
STARTS = 2
LEAST_SECONDS = 600.0
_SECONDS_BETWEEN_LOOKS = 1.0
_FILES = ("metrics.jsonl", "log.txt", "worker.log", "checkpoints")


class Watch:
    """Measures how long a point's folder has not changed.

    Args:
      folder: of the point.
      limit: seconds after which a worker counts as hanging; 0: never; None: by what it
        has done so far.
    """

    def __init__(self, folder: pathlib.Path, limit: float | None):
        self._folder = folder
        self._limit = limit
        self._records = _mark(folder, _FILES[:1])
        self._start: float | None = None  # seconds to the first record
        self._longest = 0.0
        self.reset()

    def reset(self) -> None:
        """Counts from now on: the worker has not begun yet."""
        self._mark = _mark(self._folder, _FILES)
        self._begun = self._since = self._looked = time.monotonic()

    def silence(self) -> float | None:
        """Seconds without a change, None while there are not too many."""
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return None
        self._looked = now
        mark = _mark(self._folder, _FILES)
        if mark != self._mark:
            if self._start is not None:
                self._longest = max(self._longest, now - self._since)
            elif _mark(self._folder, _FILES[:1]) != self._records:
                self._start = now - self._begun
            self._mark, self._since = mark, now
            return None
        silent = now - self._since
        return silent if self._limit != 0 and silent > self._allowed() else None

    def _allowed(self) -> float:
        if self._limit is not None:
            return self._limit
        if self._start is None:
            return START_SECONDS
        return max(LEAST_SECONDS, PAUSES * self._longest, STARTS * self._start)


def _mark(folder: pathlib.Path, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """What changes when one of the files does."""
    marks = []
    for name in names:
        try:
            found = (folder / name).stat()
            marks.append((found.st_size, found.st_mtime_ns))
        except OSError:
            marks.append((-1, -1))
    return marks
