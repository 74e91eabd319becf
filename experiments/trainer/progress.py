"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import contextlib
import pathlib
import sys
import time
from typing import Any

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 30


class _Screen:
    """Standard error; a terminal that has gone, or a closed pipe, ends no run."""

    def __init__(self):
        self._file = sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


class Progress:
    """Loss, rate and time left of a run; every line goes to `log.txt` too.

    Args:
      folder: of `log.txt`.
      steps: of the whole run.
      quiet: leave the screen to another process.
    """

    def __init__(self, folder: pathlib.Path, steps: int, *, quiet: bool = False):
        self._log = (folder / "log.txt").open("a")
        self._steps = steps
        self._last_line = -float("inf")
        self._val_loss = None
        self._console = rich.console.Console(
            file=_Screen(), soft_wrap=True, quiet=quiet
        )
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[shown]}"),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(
            *columns, console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task(folder.name, total=steps, shown="compiling")

    def line(self, text: str) -> None:
        """Says something once."""
        self._log.write(text + "\n")
        self._log.flush()
        self._console.print(text, markup=False, highlight=False)

    def start(self) -> None:
        """Shows the bar."""
        self._bar.start()

    def update(self, record: dict[str, Any]) -> None:
        """Shows a record of the metrics."""
        now = time.monotonic()
        self._val_loss = record.get("val_loss", self._val_loss)
        rate = record["tokens_per_second"]
        shown = f"loss {record['loss']:.3f}"
        if self._val_loss is not None:
            shown += f"  val {self._val_loss:.3f}"
        shown += f"  {rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=record["step"], shown=shown)
        late = now - self._last_line > _SECONDS_BETWEEN_LINES
        if late or "val_loss" in record:
            self._last_line = now
            left = (self._steps - record["step"]) * record["step_seconds"]
            text = f"step {record['step']}/{self._steps}  {shown}  {left:.0f} s left"
            self._log.write(text + "\n")
            self._log.flush()
            if self._bar.disable:
                self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Takes the bar away and closes the log."""
        self._bar.stop()
        self._log.close()
