"""The methods as arms, each with what is tuned of it: as many trials for all."""

from collections.abc import Mapping
from typing import Any

from experiments.study.arms import DECAY, OTHERS, RATE, Arm
from experiments.study.search import Axis, Search

_B2 = "optimizer.kwargs.b2"
_RADIUS = "optimizer.kwargs.embedding_radius"
_EMBEDDING = "optimizer.kwargs.embedding_learning_rate"
_MOMENTUM = "optimizer.kwargs.momentum"


# Values of a field beyond its first three are tried until the best lies inside.
_MOST = 9


def _others(rate: float) -> Axis:
    return Axis(OTHERS, rate, most=_MOST)


_DECAY = Axis(DECAY, 0.1, factor=3.0, most=_MOST)
# Method -> the rate about which it is tuned, and what else has three values: the rate
# of the other leaves, or where there is none what its paper tunes.
METHODS: dict[str, tuple[float, tuple[Axis, ...]]] = {
    "adamw": (4e-3, (Axis(_B2, 0.95, values=(0.9, 0.95, 0.99)), _DECAY)),
    "sgd": (0.2, (Axis(_MOMENTUM, 0.9, values=(0.8, 0.9, 0.95)), _DECAY)),
    "lion": (1e-3, (Axis(_B2, 0.99, values=(0.95, 0.98, 0.99)), _DECAY)),
    "muon": (1e-2, (_others(4e-3), _DECAY)),
    "root": (1e-2, (_others(4e-3), _DECAY)),
    "soap": (4e-3, (_others(4e-3), _DECAY)),
    "cosmos": (2e-3, (_others(4e-3), _DECAY)),
    "lanton": (1e-2, (Axis(_EMBEDDING, 1e-2, most=_MOST), _DECAY)),
    "scion": (
        2.5e-4,
        (
            Axis(_RADIUS, 3000.0, most=_MOST),
            Axis("optimizer.kwargs.hidden_radius", 50.0, most=_MOST),
        ),
    ),
    "spam": (4e-3, (Axis(_B2, 0.999, values=(0.95, 0.99, 0.999)), _DECAY)),
    "stable_spam": (4e-3, (Axis(_B2, 0.999, values=(0.95, 0.99, 0.999)), _DECAY)),
    "adahessian": (0.08, (Axis(_B2, 0.999, values=(0.95, 0.99, 0.999)), _DECAY)),
    "cosmos_h": (2e-3, (_others(4e-3),)),
    "normuon": (1e-2, (_others(4e-3), _DECAY)),
}
# The papers' rank is 5% of the width; at less than 8 the basis is hardly one. Resets at
# the papers' intervals would never come in the 400 steps of a run.
_FIXED: dict[str, dict[str, Any]] = {
    "cosmos": {"optimizer.kwargs.rank": 8},
    "cosmos_h": {"optimizer.kwargs.rank": 8},
    "lanton_cosmos": {"optimizer.kwargs.rank": 8},
    "despiked_cosmos": {"optimizer.kwargs.rank": 8},
    "spam": {
        "optimizer.kwargs.reset_interval": 100,
        "optimizer.kwargs.warmup_steps": 30,
    },
    "stable_spam": {"optimizer.kwargs.reset_interval": 200},
}
# Those of configs/combinations.py -> the method whose centres and grids they have.
COMBINED = {
    "lanton_cosmos": "cosmos",
    "lanton_root": "root",
    "despiked_muon": "muon",
    "despiked_cosmos": "cosmos",
    # Centred as AdamW; what is tuned beside the rate is what matrix methods tune.
    "adamw_two_rates": "soap",
}


def arm(
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    task: str = "",
    rate: float | None = None,
    start: int = 4,
    deep: bool = False,
    seeds: int = 3,
) -> Arm:
    """A method as an arm.

    Args:
      name: of the method, which is the registry's.
      overrides: what else the arm sets.
      task: of `arms.TASKS`; the small language model if not given.
      rate: about which it is tuned, if not the method's own.
      start: how many rates there are at first.
      deep: tune what else the method has too; if not, it stays at its centre.
      seeds: how many the best trial gets.
    """
    center, axes = METHODS[COMBINED.get(name, name)]
    given = {"optimizer.name": name, **_FIXED.get(name, {}), **(overrides or {})}
    task = task or ("combined" if name in COMBINED else "small")
    tuned = tuple(axis for axis in axes if axis.field not in given) if deep else ()
    fixed = {axis.field: axis.center for axis in axes if axis not in tuned}
    rates = Axis(RATE, rate or center, start=start, most=start + 3 if start > 1 else 1)
    search = Search((rates, *tuned), seeds)
    if deep:  # the second axis is a rate too, or a list of values
        search = search._replace(together=1 if tuned[0].values else 2)
    return Arm(task, {**fixed, **given}, search)


def grid(
    name: str, overrides: Mapping[str, Any], rate: float, *, seeds: int = 3
) -> Arm:
    """A method at five rates a factor of 4 apart, each with all seeds."""
    plain = arm(name, overrides)
    axis = Axis(RATE, rate, factor=4.0, start=5, most=5)
    return plain._replace(search=Search((axis,), seeds, everywhere=True))
