"""UBA under nine methods."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
UBA with phi = 1 ends at a lower loss than cosine under most methods.
"""
SOURCE = "no paper; UBA, arXiv 2505.24452, has AdamW, SGD and a few more"
RULE = """
It holds if the loss is lower by an interval above 0 for at least two thirds of the
methods, and does not if that many cannot be reached.
"""

_METHODS = ("adamw", "muon", "cosmos", "root", "soap", "lanton", "scion", "lion")
_METHODS += ("stable_spam",)


def trials():
    cosine = {f"{name}, cosine": arm(name) for name in _METHODS}
    return cosine | {
        f"{name}, UBA": arm(name, {"schedule.name": "uba"}) for name in _METHODS
    }


def decide(results):
    return rules.share_of(
        {
            name: rules.lower_loss(results, f"{name}, UBA", f"{name}, cosine")
            for name in _METHODS
        },
        2 / 3,
    )
