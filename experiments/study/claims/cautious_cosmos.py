"""Cautious updates around COSMOS, and around AdamW and Muon."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Cautious updates lower the loss of COSMOS, as their paper says of AdamW and Lion.
"""
SOURCE = "no paper for COSMOS; Cautious Optimizers, arXiv 2411.16085"
RULE = """
It holds if COSMOS inside `cautious` ends at a lower loss by an interval above 0, and
does not if the interval lies at or below 0. AdamW and Muon are shown beside it.
"""

_METHODS = ("cosmos", "adamw", "muon")


def trials():
    own = {"optimizer.wrappers": "cautious"}
    plain = {name: arm(name) for name in _METHODS}
    return plain | {f"cautious {name}": arm(name, own) for name in _METHODS}


def decide(results):
    return rules.lower_loss(results, "cautious cosmos", "cosmos")
