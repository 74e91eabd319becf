"""The claims, one file each, in the order of their worth.

A file has `CLAIM`, what is said in a sentence; `SOURCE`, who says it; `RULE`, what
decides, which was there before the runs; `trials()`, the arms by name, the baseline
first; `decide(results)`, the rule as a function; and perhaps `figure(results)`, where
losses and rates are not what is to be seen. The gains of its arms are always drawn.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.errors import UserError, nearest
from experiments.study import figures
from experiments.study.arms import Arm
from experiments.study.results import Results
from experiments.study.rules import Verdict

NAMES = (
    "methods",
    "two_rates",
    "cosmos",
    "cosmos_memory",
    "root",
    "root_outliers",
    "spam",
    "spam_spikes",
    "lanton",
    "soap_interval",
    "soap_kl",
    "uba_adamw",
    "cosmos_rank",
    "cosmos_gamma",
    "lion_batches",
    "adahessian",
    "adahessian_interval",
    "lanton_spread",
    "lanton_batches",
    "lanton_exponent",
    "cosmos_h",
    "despiked",
    "cautious_cosmos",
    "lanton_over",
    "images",
    "larger_model",
    "scion_radii",
    "spam_density",
    "lanton_noise",
    "bfloat16",
    "uba_cosmos",
    "uba_muon",
    "uba_sgd",
    "uba_everywhere",
    "width_sensitivity",
    "larger_data",
)


class Claim(NamedTuple):
    """One claim; its fields are those of its file."""

    name: str
    sentence: str
    source: str
    rule: str
    trials: dict[str, Arm]
    decide: Callable[[Results], Verdict]
    figure: Callable[[Results], Figure]


def load(names: tuple[str, ...] | list[str] = ()) -> list[Claim]:
    """The claims of these names, all if there are none, in the order of their worth.

    Raises:
      UserError: if there is no such claim.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"{name!r} is no claim, allowed {', '.join(NAMES)}"
                f"{nearest(name, NAMES)}"
            )
    return [_claim(name) for name in NAMES if name in names or not names]


def _claim(name: str) -> Claim:
    found = importlib.import_module(f"{__name__}.{name}")
    return Claim(
        name,
        *(" ".join(text.split()) for text in (found.CLAIM, found.SOURCE, found.RULE)),
        found.trials(),
        found.decide,
        getattr(found, "figure", figures.rates),
    )
