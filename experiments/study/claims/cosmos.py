"""COSMOS against AdamW, Muon and SOAP at equal steps."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
COSMOS ends at a lower loss than AdamW, Muon and SOAP after as many steps (20.54
against 21.28, 20.69 and 20.59 of perplexity on C4 with 130M parameters).
"""
SOURCE = "COSMOS, arXiv 2502.17410, tables of C4"
RULE = """
It holds if COSMOS's loss is lower than that of each of the three by an interval above
0, and does not if one interval lies at or below 0.
"""

_OTHERS = ("adamw", "muon", "soap")


def trials():
    return {name: arm(name, deep=True) for name in (*_OTHERS, "cosmos")}


def decide(results):
    return rules.all_of(
        *(rules.lower_loss(results, "cosmos", name) for name in _OTHERS)
    )
