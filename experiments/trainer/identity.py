"""What a run trains: its config and its data, and how two of them differ."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import schedules
from experiments.config import base, flatten
from experiments.data import digests

# Fields that may differ when a run goes on: the training is the same, but for the
# order in which a mesh adds up.
MAY_CHANGE = (
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "train.diagnostics_every",
    "train.wandb_project",
    "mesh.data",
    "mesh.model",
    "mesh.slice",
    "mesh.mode",
)
# Without one of these files a folder holds no run.
_SIGNS = ("config.json", "result.json", "metrics.jsonl", "checkpoints")


def asked(
    config: ml_collections.ConfigDict, digest: str, files: Mapping[str, str]
) -> dict[str, Any]:
    """What a config and its data ask for, by dotted path, as config.json has it."""
    fields = json.loads(json.dumps(flatten(config)))
    return _lasting(fields | of_data(digest, files) | of_schedule(config))


def of_data(digest: str, files: Mapping[str, str]) -> dict[str, Any]:
    """What config.json has of the data; `data_files` only of data that are files."""
    return {"data_digest": digest} | ({"data_files": dict(files)} if files else {})


def of_schedule(config: ml_collections.ConfigDict) -> dict[str, str]:
    """What config.json has of the records that a schedule reads; {} of others."""
    digest = schedules.digest(config)
    return {"schedule_digest": digest} if digest else {}


def recorded(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the content of a config.json asked for."""
    files = content.get("data_files")
    known = files if isinstance(files, Mapping) else {}
    read = of_data(content["data_digest"], known)
    if isinstance(content.get("schedule_digest"), str):
        read["schedule_digest"] = content["schedule_digest"]
    return _lasting(flatten_json(content["config"]) | read)


def trained(folder: pathlib.Path) -> dict[str, Any] | None:
    """The same of a folder's run: {} if it cannot be read, None if there is no run."""
    if not any((folder / name).exists() for name in _SIGNS):
        return None
    try:
        return recorded(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The fields that differ, each with both values, or with the file that differs.

    A field that is younger than the run had its default. A name comes before its
    arguments: it says more than what follows from it.
    """
    before = _lasting(flatten(base())) | dict(before)
    found = {}
    fields = before.keys() | now.keys()
    for field in sorted(fields - {"data_files"}, key=lambda x: (".kwargs." in x, x)):
        old, new = before.get(field), now.get(field)
        if old != new:
            found[field] = f"{field}={old!r}, not {new!r}"
    if "schedule_digest" in found:
        found["schedule_digest"] = "other records in schedule.kwargs.run than today's"
    if "data_digest" in found:
        files = before.get("data_files", {}), now.get("data_files", {})
        found["data_digest"] = digests.changed_file(*files) or found["data_digest"]
    return found


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first of `changes`; empty if there is none."""
    if not before:
        return "an unreadable config.json"
    return next(iter(changes(before, now).values()), "")


def flatten_json(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted path."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten_json(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _lasting(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that may change while a run goes on."""
    return {x: value for x, value in fields.items() if not x.startswith(MAY_CHANGE)}
