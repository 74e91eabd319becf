"""SPAM that updates a quarter of the entries of each matrix."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Sparse momentum at a density of 25% costs SPAM little, for a state of a quarter.
"""
SOURCE = "SPAM, arXiv 2501.06842, section on sparse momentum"
RULE = """
It holds if the loss at density 0.25 is at most 0.02 nats above that of SPAM with its
whole interval, and its state is at most half of SPAM's, since that of embeddings and
vectors stays whole; it does not if the whole interval is above that, or the state is
larger.
"""


def trials():
    return {
        "spam": arm("spam"),
        "density 0.25": arm("spam", {"optimizer.kwargs.density": 0.25}),
        "adam": arm("adamw", {"optimizer.kwargs.b2": 0.999}),
    }


def decide(results):
    return rules.all_of(
        rules.no_worse(results, "density 0.25", "spam", 0.02),
        rules.smaller(results, "density 0.25", "spam", "state_bytes", 2.0),
    )
