"""The power of LANTON's ratio."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
LANTON's ratio itself makes better rates than its square root.
"""
SOURCE = """
LANTON, arXiv 2510.14009, has the root; no code of it is released
"""
RULE = """
It holds if exponent 1 ends at a lower loss than exponent 1/2 and than no adaptation,
each by an interval above 0, and does not if one interval lies at or below 0.
"""

_EXPONENTS = {"no adaptation": 0.0, "exponent 1/2": 0.5, "exponent 1": 1.0}


def trials():
    return {
        name: arm("lanton", {"optimizer.kwargs.exponent": exponent}, deep=True)
        for name, exponent in _EXPONENTS.items()
    }


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, "exponent 1", other)
            for other in ("exponent 1/2", "no adaptation")
        )
    )
