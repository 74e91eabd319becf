"""Every method at its best on one model, tuned with as many trials as AdamW."""

from experiments.study import rules
from experiments.study.methods import METHODS, arm

CLAIM = """
Each method that came after Adam ends at a lower loss than AdamW, all tuned by the same
rule.
"""
SOURCE = "what each of the papers says of its own method"
RULE = """
It holds if the loss of each of COSMOS, ROOT, Muon, Scion, LANTON, SOAP, SPAM,
Stable-SPAM, Lion and AdaHessian is lower than AdamW's by an interval above 0, and does
not if that of one is not.
"""
_NAMED = ("cosmos", "root", "muon", "scion", "lanton", "soap", "spam")
_NAMED += ("stable_spam", "lion", "adahessian")


def trials():
    return {name: arm(name, deep=True) for name in METHODS}


def decide(results):
    return rules.share_of(
        {name: rules.lower_loss(results, name, "adamw") for name in _NAMED}
    )
