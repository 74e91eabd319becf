"""Runs as their folders have them, and the names that tell them apart."""

import json
import pathlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from experiments import records
from experiments.config import UserError
from experiments.trainer.workdir import MAY_CHANGE, flatten_json

# Fields that make no other method: a method has many rates and seeds.
_ASIDE = ("seed", "optimizer.learning_rate", *MAY_CHANGE)
_NAMES = ("optimizer.name", "schedule.name")


class Run(NamedTuple):
    """What a run's folder holds; `name` is that of its method, alike for all rates."""

    name: str
    folder: pathlib.Path
    config: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.config["optimizer"]["learning_rate"]

    @property
    def reason(self) -> str:
        """How the run ended, `unfinished` where it has not."""
        return self.result.get("reason", "unfinished")

    @property
    def diverged(self) -> bool:
        """Whether it ended without a finite loss."""
        return self.reason == "diverged"

    @property
    def loss(self) -> float | None:
        """The validation loss at the end; infinite if diverged, None if unfinished."""
        if self.diverged:
            return float("inf")
        return self.result.get("val_loss") if self.reason == "completed" else None

    @property
    def initial_loss(self) -> float | None:
        """The training loss before the first step."""
        first = self.records[0] if self.records else {}
        return first.get("loss") if first.get("step") == 1 else None

    def validation(self) -> list[dict[str, Any]]:
        """The records that have a finite validation loss."""
        return [r for r in self.records if r.get("val_loss") is not None]


def load_runs(
    folders: Iterable[str | pathlib.Path], tuned: Iterable[str] = ()
) -> list[Run]:
    """Reads every run at or below the folders.

    Args:
      folders: to look in.
      tuned: fields of the config that make no other method, beside rate and seed.

    Raises:
      UserError: if there is none, or one cannot be read.
    """
    roots = [pathlib.Path(folder) for folder in folders]
    paths = [path for root in roots for path in sorted(root.rglob("metrics.jsonl"))]
    paths = list(dict.fromkeys(path.resolve() for path in paths))
    if not paths:
        raise UserError(f"no run (metrics.jsonl) below {', '.join(map(str, roots))}")
    configs, results = [], []
    for path in paths:
        try:
            config = (path.parent / "config.json").read_text()
            configs.append(json.loads(config)["config"])
            result = path.parent / "result.json"
            results.append(json.loads(result.read_text()) if result.exists() else {})
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path.parent} is no whole run, {error!r}") from error
    names = _names(configs, (*_ASIDE, *_NAMES, *tuned))
    return [
        Run(name, path.parent, config, result, list(records.read(path)))
        for name, path, config, result in zip(
            names, paths, configs, results, strict=True
        )
    ]


def _names(configs: list[dict[str, Any]], aside: tuple[str, ...]) -> list[str]:
    """Optimizer, schedule, and the fields in which runs of these differ."""
    flat = [flatten_json(config) for config in configs]
    alike = defaultdict(list)
    for fields in flat:
        alike[tuple(fields[name] for name in _NAMES)].append(fields)
    varied = {
        key: [
            field
            for field in sorted({field for fields in group for field in fields})
            if field not in aside
            and len({repr(fields.get(field)) for fields in group}) > 1
        ]
        for key, group in alike.items()
    }
    names = []
    for fields in flat:
        key = tuple(fields[name] for name in _NAMES)
        own = [f"{f.rpartition('.')[2]}={_short(fields.get(f))}" for f in varied[key]]
        names.append(", ".join([*key, *own]))
    return names


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
