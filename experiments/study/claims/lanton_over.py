"""LANTON's rates over COSMOS and ROOT."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
LANTON's rates help COSMOS and ROOT too.
"""
SOURCE = "no paper; LANTON, arXiv 2510.14009, builds on Muon's step"
RULE = """
It holds if both combinations end at a lower loss than the method itself by an
interval above 0, and does not if one interval lies at or below 0.
"""

_PAIRS = {"cosmos": "lanton_cosmos", "root": "lanton_root"}


def trials():
    return {name: arm(name) for pair in _PAIRS.items() for name in pair}


def decide(results):
    return rules.all_of(
        *(rules.lower_loss(results, made, plain) for plain, made in _PAIRS.items())
    )
