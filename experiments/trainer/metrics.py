"""The records of a run: `metrics.jsonl`, the truth for all else, and TensorBoard."""

import json
import math
import pathlib
from typing import Any

import tensorboardX


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: None stands for what is not finite, at any depth."""
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsWriter:
    """Appends one record per line, and is flushed after each."""

    def __init__(self, folder: pathlib.Path):
        self._file = (folder / "metrics.jsonl").open("a")
        self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record; `record["step"]` places it.

        Args:
          record: scalars by name, or dictionaries of them.
        """
        self._file.write(json.dumps(finite_or_none(record)) + "\n")
        self._file.flush()
        for name, value in record.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for group, scalar in scalars.items():
                if name != "step" and math.isfinite(scalar):
                    tag = f"{name}/{group}" if group else name
                    self._board.add_scalar(tag, scalar, record["step"])

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
