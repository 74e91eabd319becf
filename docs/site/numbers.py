"""Tables of the pages, made from what `results/` holds."""

import functools
import pathlib
from typing import NamedTuple

from docs.site.docstrings import ROOT
from experiments.reporting.files import read_csv

RESULTS = ROOT / "results"
STUDY = RESULTS / "study"


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a table of results."""
    return read_csv(path)[1]


def table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Best(NamedTuple):
    """What the study found for a method, tuned.

    Attributes:
      rate: the best, by the mean of the seeds.
      others: what else was tuned, and to which values.
      loss: validation loss there, the mean over the seeds, in nats a byte.
      gain: over AdamW in nats with its 95% interval; empty for AdamW.
      off_by_two: how much higher the loss is, on average, at half and twice the rate.
    """

    rate: float
    others: str
    loss: float
    gain: str
    off_by_two: float | None


@functools.cache
def best_rates() -> dict[str, Best]:
    """What the study found, by optimizer, the lowest loss first."""
    found = {
        row["arm"]: Best(
            float(row["rate"]),
            row["also tuned"],
            float(row["val loss"]),
            row["gain"],
            float(row["rate off by 2"]) if row["rate off by 2"] else None,
        )
        for row in rows(STUDY / "arms.csv")
        if row["claim"] == "methods"
    }
    return dict(sorted(found.items(), key=lambda item: item[1].loss))


@functools.cache
def costs() -> dict[str, tuple[str, str]]:
    """Bytes of state per parameter and share of a training step, by optimizer."""
    return {
        row["optimizer"]: (
            row["state bytes per parameter"],
            row["share of a step of 0.5 M tokens"],
        )
        for row in rows(RESULTS / "benchmarks" / "catalogue.csv")
    }


def of_method(name: str) -> str:
    """What the study and the counts say about one method, in sentences."""
    rates, cost = best_rates(), costs()
    state, share = cost[name]
    counted = (
        f"The state takes **{state} bytes a parameter** (AdamW: {cost['adamw'][0]}) "
        f"for a LLaMA-130M in float32, and a step's arithmetic is **{share}** of a "
        "training step of 0.5 M tokens."
    )
    if name not in rates:
        return f"The study has not tuned this method yet. {counted}"
    adamw, best = rates["adamw"], rates[name]
    return (
        "In [the study](../results/study/README.md) the best rate was "
        f"**{best.rate:g}**, {best.rate / adamw.rate:.3g} times AdamW's, with "
        f"{best.others}. The validation loss was {best.loss:.3f} against AdamW's "
        f"{adamw.loss:.3f}, a gain of {best.gain} nats. {_off(best, adamw)}{counted}"
    )


def _off(best: Best, adamw: Best) -> str:
    """What a rate that is off by 2 costs, where the study has both neighbours."""
    if best.off_by_two is None or adamw.off_by_two is None:
        return ""
    return (
        f"At half and at twice the rate the loss was {best.off_by_two:.3f} higher on "
        f"average (AdamW: {adamw.off_by_two:.3f}). "
    )
