"""AdamW with a separate rate for embeddings, head and vectors, as a baseline."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
AdamW with a separate rate for embeddings, head and vectors does not reach the methods
for matrices, which have one.
"""
SOURCE = "none; what a fair comparison has to rule out"
RULE = """
It holds if COSMOS, Muon, ROOT and SOAP each end at a lower loss than AdamW with two
rates by an interval above 0, and does not if one interval lies at or below 0. Each has
its rate, the rate of the other leaves and the decay tuned.
"""
_BASE = "adamw_two_rates"
_METHODS = ("cosmos", "muon", "root", "soap")


def trials():
    return {name: arm(name, deep=True) for name in (_BASE, "adamw", *_METHODS)}


def decide(results):
    return rules.all_of(*(rules.lower_loss(results, name, _BASE) for name in _METHODS))
