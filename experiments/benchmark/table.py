"""The table of a suite: a CSV file, a Markdown file, and the screen."""

import csv
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def write(
    path: pathlib.Path,
    heading: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Writes `path`.csv, and what `show` does."""
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    show(path, heading, columns, rows)


def show(
    path: pathlib.Path,
    heading: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Writes `path`.md under its heading, and prints the table."""
    lines = [columns, ["---"] * len(columns), *rows]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.with_suffix(".md").write_text(f"{heading}\n\n{body}")
    table = Table(*columns)
    for line in rows:
        table.add_row(*line)
    # A file or a pipe has no width, and would get that of a narrow terminal.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
