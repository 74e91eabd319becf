"""Tables of the pages, made from what `results/` holds."""

import pathlib
from typing import NamedTuple

from docs.site.docstrings import ROOT
from experiments.reporting.files import read_csv

RESULTS = ROOT / "results"
SWEEP = RESULTS / "sweeps" / "optimizers"


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a table of results."""
    return read_csv(path)[1]


def table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Best(NamedTuple):
    """What the sweep found for a method.

    Attributes:
      rate: the best of four.
      loss: validation loss there, the mean over three seeds.
      spread: of the loss over the seeds.
      sensitivity: how much higher the loss is on average over the four rates.
    """

    rate: float
    loss: float
    spread: float
    sensitivity: float


def best_rates() -> dict[tuple[str, str], Best]:
    """What the sweep found, by optimizer and schedule."""
    lines = (SWEEP / "results.md").read_text().splitlines()
    head, _, *body = ([x.strip() for x in line.split("|")[1:-1]] for line in lines)
    found = {}
    for cells in body:
        row = dict(zip(head, cells, strict=True))
        name, schedule = row["optimizer"].split(", ")
        wanted = ("rate", "val loss", "spread", "sensitivity")
        found[name, schedule] = Best(*(float(row[x]) for x in wanted))
    return found


def costs() -> dict[str, tuple[str, str]]:
    """Bytes of state per parameter and share of a training step, by optimizer."""
    return {
        row["optimizer"]: (
            row["state bytes per parameter"],
            row["share of a step of 0.5 M tokens"],
        )
        for row in rows(RESULTS / "benchmarks" / "catalogue.csv")
    }


def comparison() -> str:
    """Rates, losses, memory and work of every optimizer of the sweep."""
    rates, cost = best_rates(), costs()
    unit = rates["adamw", "cosine"].rate
    body = []
    ranked = sorted(rates.items(), key=lambda item: item[1].loss)
    for (name, schedule), best in ranked:
        state, share = cost[name]
        shown = f"[`{name}`](methods/{name}.md)" if has_page(name) else f"`{name}`"
        body.append(
            [
                f"{shown}, {schedule}",
                f"{best.rate:g}",
                f"{best.rate / unit:.3g}",
                f"{best.loss:.3f}",
                f"{best.spread:.3f}",
                f"{best.sensitivity:.3f}",
                state,
                share,
            ]
        )
    head = [
        "method, schedule",
        "best rate",
        "of AdamW's",
        "validation loss",
        "spread of seeds",
        "sensitivity",
        "state, B/param",
        "share of a step",
    ]
    return table(head, body)


def of_method(name: str) -> str:
    """What the sweep and the counts say about one method, in sentences."""
    rates, cost = best_rates(), costs()
    if (name, "cosine") not in rates or name not in cost:
        return "Our sweep has not run this method yet."
    adamw, best = rates["adamw", "cosine"], rates[name, "cosine"]
    state, share = cost[name]
    return (
        f"In [our sweep](../results/sweeps/optimizers/README.md) the best of four "
        f"rates was **{best.rate:g}**, {best.rate / adamw.rate:.3g} times AdamW's, "
        f"with a validation loss of {best.loss:.3f} against AdamW's {adamw.loss:.3f}. "
        f"Over all four rates the loss was {best.sensitivity:.3f} higher on average "
        f"(AdamW: {adamw.sensitivity:.3f}). The state takes **{state} bytes a "
        f"parameter** (AdamW: {cost['adamw'][0]}) for a LLaMA-130M in float32, and a "
        f"step's arithmetic is **{share}** of a training step of 0.5 M tokens."
    )


def has_page(name: str) -> bool:
    """Whether a method has a page."""
    from docs.site.methods import METHODS

    return name in METHODS


TABLES = {"comparison": comparison}
