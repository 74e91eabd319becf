"""SPAM's clipping before orthogonalization."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
SPAM's clipping of entries, before Muon's and COSMOS's orthogonalization, helps where
gradients have outliers.
"""
SOURCE = "no paper; SPAM, arXiv 2501.06842, clips before Adam"
RULE = """
A thousandth of the elements of every gradient gets an outlier of 30 times the leaf's
root mean square or more. It holds if both losses are lower than without the clipping
by an interval above 0, and does not if one interval lies at or below 0.
"""

_OUTLIERS = {"faults.outliers": 1e-3, "faults.outlier_scale": 30.0}
_PAIRS = {"muon": "despiked_muon", "cosmos": "despiked_cosmos"}


def trials():
    return {name: arm(name, _OUTLIERS) for pair in _PAIRS.items() for name in pair}


def decide(results):
    return rules.all_of(
        *(rules.lower_loss(results, made, plain) for plain, made in _PAIRS.items())
    )
