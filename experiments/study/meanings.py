"""What a run's config means, as a digest that lasts.

A field counts where it differs from the default that it had when the study first saw
it. A younger field leaves the digest as it is as long as it has its first default, and
a default that changes makes another run of all that had it.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import choices
from experiments import config as configs
from experiments.study import arms
from experiments.trainer import identity

# Numbers that no other field follows from: one reading of a config serves them all.
_FREE = ("seed", arms.RATE, arms.OTHERS, arms.DECAY)


class Meanings:
    """Digests of what the study asks for.

    Args:
      path: of the file with the first defaults; made by `save` if missing.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else "{}"
        self._first: dict[str, dict[str, Any]] = json.loads(text)
        self._known: dict[str, dict[str, Any]] = {}

    def digest(self, config: str, fields: Mapping[str, Any], seed: int) -> str:
        """The digest of a run.

        Args:
          config: path of its config file.
          fields: that it sets.
          seed: of it.

        Raises:
          UserError: if that is no config.
        """
        given = {**fields, "seed": seed}
        free = {name: given[name] for name in _FREE if name in given}
        rest = {name: x for name, x in given.items() if name not in free}
        family = arms.key(config, rest, 0) + " ".join(free)
        if family not in self._known:
            words = [f"--config.{name}={value}" for name, value in given.items()]
            self._known[family] = self._fields(configs.load(config, words)[0])
        found = {**self._known[family], **free}
        own = {
            name: value
            for name, value in found.items()
            if value != self._first_default(name, found)
        }
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]

    def save(self) -> None:
        """Writes the first defaults, where there are new ones."""
        text = json.dumps(self._first, indent=1, sort_keys=True) + "\n"
        if self._path.exists() and self._path.read_text(encoding="utf-8") == text:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(self._path)

    def _fields(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """All that decides about a run; notes defaults that were not seen before."""
        fields = identity.asked(config, "", {})
        defaults = json.loads(json.dumps(configs.flatten(configs.base())))
        defaults |= json.loads(json.dumps(configs.default_kwargs(config)))
        for name in fields:
            if name in defaults:
                place = self._first.setdefault(_chosen(name, fields), {})
                place.setdefault(name, defaults[name])
        return fields

    def _first_default(self, name: str, fields: Mapping[str, Any]) -> Any:
        return self._first.get(_chosen(name, fields), {}).get(name)


def _chosen(name: str, fields: Mapping[str, Any]) -> str:
    """What a field's default belongs to: `base`, or what its section chooses."""
    section, inside, _ = name.partition(".kwargs.")
    if not inside:
        return "base"
    return " ".join(str(fields[field]) for field in choices.FIELDS[section])
