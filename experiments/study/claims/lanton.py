"""LANTON against the same without adaptation."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
LANTON's rates reach the same loss in 1.5 times fewer steps than without adaptation
(20 instead of 30 billion tokens).
"""
SOURCE = "LANTON, arXiv 2510.14009, LLaMA-1.1B on C4"
RULE = """
Of the alpha 0.1, 1 and 10 that with the lowest mean counts. It holds if LANTON takes
1.5 times fewer steps to the final loss without adaptation, with its whole interval,
and does not if the whole interval is at or below 1.5.
"""

_NOT = {"optimizer.kwargs.exponent": 0.0}
_ALPHAS = (0.1, 1.0, 10.0)


def trials():
    adapted = {
        f"alpha {alpha:g}": arm("lanton", {"optimizer.kwargs.alpha": alpha}, deep=True)
        for alpha in _ALPHAS
    }
    first_power = {"optimizer.kwargs.exponent": 1.0}
    return {
        "no adaptation": arm("lanton", _NOT, deep=True),
        **adapted,
        "alpha 1, exponent 1": arm("lanton", first_power, deep=True),
    }


def decide(results):
    names = [f"alpha {alpha:g}" for alpha in _ALPHAS]
    best = min(names, key=lambda name: results[name].loss)
    return rules.fewer_steps(results, best, "no adaptation", 1.5)
