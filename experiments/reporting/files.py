"""Tables as files: the one writer of CSV and of Markdown, and the reader of CSV."""

import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting.escape import csv_cell, csv_text, markdown_cell


def split(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Rows by column as columns and rows; each row has the columns of the first."""
    return list(rows[0]), [list(row.values()) for row in rows]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [
        [markdown_cell(name) for name in columns],
        ["---"] * len(columns),
        *([markdown_cell(text) for text in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Writes a CSV file, without a cell that a spreadsheet would run.

    The new file takes the old one's place, so that there is never half of one.
    """
    new = path.with_name(f"{path.name}.new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(map(csv_cell, row) for row in rows)
    new.replace(path)


def read_csv(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a file of `write_csv`, and the rows that are not cut off."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [
            {name: csv_text(cell) for name, cell in row.items()}
            for row in reader
            if None not in row.values()
        ]
        return list(reader.fieldnames or ()), rows
