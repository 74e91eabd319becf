"""The same over batch sizes: small batches are noisy."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
What LANTON gains by its adaptation grows with the noise, and so is larger at small
batches.
"""
SOURCE = "LANTON, arXiv 2510.14009, its motivation"
RULE = """
It holds if the gain of the adaptation at 2 windows is above that at 32 windows by an
interval above 0, and does not if the interval lies at or below 0. Exponent 1
is shown beside it and does not decide.
"""

_WAYS = {
    "no adaptation": {"optimizer.kwargs.exponent": 0.0},
    "lanton": {},
    "exponent 1": {"optimizer.kwargs.exponent": 1.0},
}
_BATCHES = (2, 8, 32)


def trials():
    return {
        f"{name}, batch {batch}": arm("lanton", own | {"train.batch_size": batch})
        for name, own in _WAYS.items()
        for batch in _BATCHES
    }


def decide(results):
    def gains(batch):
        names = (f"{name}, batch {batch}" for name in ("lanton", "no adaptation"))
        pairs = rules.paired(*(results[x] for x in names), lambda row: row.capped)
        return [b - a for a, b in pairs]

    found = [small - large for small, large in zip(gains(2), gains(32), strict=True)]
    what = "the adaptation gains more at 2 windows than at 32 by {} nats"
    return rules.judged(rules.interval(found), 0.0, what, "+.4f")


def figure(results):
    lines = {
        name: {batch: f"{name}, batch {batch}" for batch in _BATCHES} for name in _WAYS
    }
    return figures.series(results, lines, "windows in a batch")
