"""What a run trains: its config and its data, and how two of them differ."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments.config import base, flatten
from experiments.trainer.workdir import MAY_CHANGE, flatten_json

# Without one of these files a folder holds no run.
_SIGNS = ("config.json", "result.json", "metrics.jsonl", "checkpoints")


def asked(config: ml_collections.ConfigDict, digest: str) -> dict[str, Any]:
    """What a config and its data ask for, by dotted path, as config.json has it."""
    fields = json.loads(json.dumps(flatten(config)))
    return _lasting(fields | {"data_digest": digest})


def trained(folder: pathlib.Path) -> dict[str, Any] | None:
    """The same of a folder's run: {} if it cannot be read, None if there is no run."""
    if not any((folder / name).exists() for name in _SIGNS):
        return None
    try:
        recorded = json.loads((folder / "config.json").read_text())
        fields = flatten_json(recorded["config"])
        return _lasting(fields | {"data_digest": recorded["data_digest"]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first field that differs, with both values; empty if none does.

    A field that is younger than the run had its default.
    """
    if not before:
        return "an unreadable config.json"
    before = _lasting(flatten(base())) | dict(before)
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field):
            return f"{field}={before.get(field)!r}, not {now.get(field)!r}"
    return ""


def _lasting(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that may change while a run goes on."""
    return {x: value for x, value in fields.items() if not x.startswith(MAY_CHANGE)}
