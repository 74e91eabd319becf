"""SOAP with its bases refreshed at every step and at every tenth."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
SOAP beats AdamW, also where its bases are refreshed at every tenth step only, which
loses little.
"""
SOURCE = "SOAP, arXiv 2409.11321, figure of the preconditioning frequency"
RULE = """
It holds if SOAP's loss at interval 10 is lower than AdamW's by an interval above 0,
and at most 0.02 nats above that at interval 1 with its whole interval; it does not if
one of the two intervals lies beyond its limit.
"""

_INTERVAL = "optimizer.kwargs.precondition_interval"


def trials():
    return {
        "adamw": arm("adamw"),
        "soap, every 10 steps": arm("soap"),
        "soap, every step": arm("soap", {_INTERVAL: 1}),
    }


def decide(results):
    return rules.all_of(
        rules.lower_loss(results, "soap, every 10 steps", "adamw"),
        rules.no_worse(results, "soap, every 10 steps", "soap, every step", 0.02),
    )
