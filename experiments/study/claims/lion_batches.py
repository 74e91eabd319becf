"""Lion against AdamW over batch sizes."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
Lion's gain over AdamW grows with the batch.
"""
SOURCE = "Lion, arXiv 2302.06675, section on the batch size"
RULE = """
It holds if the gain at 32 windows is above that at 2 windows by an interval above 0,
and does not if the interval lies at or below 0.
"""

_BATCHES = (2, 8, 32)


def trials():
    # As optimizers of the batch, rates by its root.
    return {
        f"{name}, batch {batch}": arm(
            name, {"train.batch_size": batch}, rate=rate * (batch / 8) ** 0.5
        )
        for name, rate in {"adamw": 4e-3, "lion": 1e-3}.items()
        for batch in _BATCHES
    }


def decide(results):
    def gains(batch):
        mine, base = results[f"lion, batch {batch}"], results[f"adamw, batch {batch}"]
        pairs = rules.paired(mine, base, lambda row: row.capped)
        return [other - own for own, other in pairs]

    found = [large - small for small, large in zip(gains(2), gains(32), strict=True)]
    what = "Lion's gain over AdamW is larger at 32 windows than at 2 by {} nats"
    return rules.judged(rules.interval(found), 0.0, what, "+.4f")


def figure(results):
    lines = {
        name: {batch: f"{name}, batch {batch}" for batch in _BATCHES}
        for name in ("adamw", "lion")
    }
    return figures.series(results, lines, "windows in a batch")
