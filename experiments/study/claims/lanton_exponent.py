"""The power of LANTON's ratio, where all of its rates are large."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
LANTON's ratio itself makes better rates than its square root.
"""
SOURCE = """
LANTON, arXiv 2510.14009, has the root; no code of it is released
"""
RULE = """
At twice the rate that was best for the root in the claim lanton, where the search went
one field at a time; the rate of the embedding and the weight decay are tuned again. It
holds if exponent 1 ends at a lower loss than exponent 1/2 and than no adaptation, each
by an interval above 0, and does not if one interval lies at or below 0.
"""

_EXPONENTS = {"no adaptation": 0.0, "exponent 1/2": 0.5, "exponent 1": 1.0}


def trials():
    return {
        name: arm(
            "lanton",
            {"optimizer.kwargs.exponent": exponent},
            rate=2e-2,
            start=1,
            deep=True,
        )
        for name, exponent in _EXPONENTS.items()
    }


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, "exponent 1", other)
            for other in ("exponent 1/2", "no adaptation")
        )
    )
