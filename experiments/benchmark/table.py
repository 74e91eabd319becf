"""The table of a suite: a CSV file, a Markdown file, and the screen."""

import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from experiments.reporting.files import markdown, write_csv


def write(
    path: pathlib.Path,
    heading: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Writes `path`.csv, and what `show` does."""
    write_csv(path.with_suffix(".csv"), columns, rows)
    show(path, heading, columns, rows)


def show(
    path: pathlib.Path,
    heading: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Writes `path`.md under its heading, and prints the table."""
    text = f"{heading}\n\n{markdown(columns, rows)}"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    table = Table(*columns)
    for line in rows:
        table.add_row(*line)
    # A file or a pipe has no width, and would get that of a narrow terminal.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
