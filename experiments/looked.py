"""What was seen inside a run: `look.jsonl` beside its records.

A line is a JSON object with `what` was measured, at which `step` and with which
`settings`, and the numbers found. A line that is anything else is passed over, so that
half a line costs that line alone.
"""

import json
import pathlib
from typing import Any

from experiments.records import finite_or_none

NAME = "look.jsonl"
# What every record has beside its numbers.
KEYS = ("step", "what", "settings")


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run's folder, in the order of steps; of two alike the later."""
    try:
        lines = (folder / NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _is_whole(record):
            found[record["what"], record["step"]] = record
    return sorted(found.values(), key=lambda x: (x["step"], x["what"]))


def _is_whole(record: dict[str, Any]) -> bool:
    return (
        isinstance(record.get("what"), str)
        and type(record.get("step")) is int
        and isinstance(record.get("settings"), dict)
    )


def add(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Appends a record; what is not finite is null there."""
    text = json.dumps(finite_or_none(record)) + "\n"
    with (folder / NAME).open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # half a line, of a process that was killed
                text = "\n" + text
        file.write(text.encode())
