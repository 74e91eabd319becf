"""SOAP with the factors of KL-Shampoo."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
SOAP with KL factors ends at a lower loss than with Shampoo's.
"""
SOURCE = "KL-Shampoo and KL-SOAP, arXiv 2509.03378"
RULE = """
It holds if the loss with KL factors is lower by an interval above 0, at every tenth
step and at every step, and does not if one interval lies at or below 0.
"""

_INTERVAL = "optimizer.kwargs.precondition_interval"


def trials():
    return {
        f"{factors}, every {'step' if every == 1 else '10 steps'}": arm(
            "soap", {_INTERVAL: every, "optimizer.kwargs.factors": factors}
        )
        for factors in ("shampoo", "kl")
        for every in (10, 1)
    }


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, f"kl, every {each}", f"shampoo, every {each}")
            for each in ("10 steps", "step")
        )
    )
