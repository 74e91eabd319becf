"""What `--help` says of the fields of a config and of what its names may choose."""

from collections.abc import Iterator, Sequence

import ml_collections

from experiments import choices
from experiments import config as configs
from experiments.arguments import meanings
from experiments.command import entry
from experiments.errors import UserError
from experiments.fields import FIELDS


def describe(path: str | None = None, overrides: Sequence[str] = ()) -> str:
    """The table of all fields, with the values that they have.

    Args:
      path: of a config file; None: the defaults of a config without one.
      overrides: as on the command line.
    """
    try:
        config, _ = configs.load(path, overrides)
        source = path or "a config file that sets nothing"
    except UserError as error:
        config, _ = configs.load(None)
        source = f"a config file that sets nothing, as here: {error}"
    flat = configs.flatten(config)
    lines = [f"Fields, with the values of {source}:"]
    for field, about in FIELDS.items():
        names = choices.names(field) or about.choices
        among = f" ({', '.join(names)})" if names else ""
        lines.append(entry(f"--config.{field}={flat[field]}", about.help + among))
    for section in choices.FIELDS:
        lines += ["", *_arguments(config, section)]
    return "\n".join(lines)


def _arguments(config: ml_collections.ConfigDict, section: str) -> Iterator[str]:
    """The kwargs of a section, by the choices that have them."""
    flat = configs.flatten(config)
    for field in choices.FIELDS[section]:
        name = flat[field]
        known, said = (
            choices.arguments(field, name),
            meanings(choices.factory(field, name)),
        )
        inside = f"--config.{section}.kwargs."
        none = "" if known.by_name or known.open else ": none"
        yield f"Arguments of {field}={name}{none}"
        for argument in known.by_name:
            value = flat[f"{section}.kwargs.{argument}"]
            yield entry(f"{inside}{argument}={value}", said.get(argument, ""))
        if known.open:
            yield entry(f"{inside}*", "any other argument that it takes")
