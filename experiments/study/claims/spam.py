"""SPAM and Stable-SPAM against Adam, with and without clipping."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
SPAM ends at a lower loss than Adam and than Adam with clipping, and Stable-SPAM at a
lower one than SPAM (perplexity on C4 with 60M parameters: Adam 34.09, with clipping
33.33, SPAM 30.46, Stable-SPAM 28.84).
"""
SOURCE = "SPAM, arXiv 2501.06842; Stable-SPAM, arXiv 2502.17055, tables of C4"
RULE = """
Nothing is put into the gradients; resets come every 100 and 200 of the 400 steps. It
holds if SPAM's loss is lower than Adam's and than that with clipping, and
Stable-SPAM's lower than SPAM's, each by an interval above 0, and does not if one
interval lies at or below 0.
"""

_B2 = "optimizer.kwargs.b2"
_METHODS = {
    "adam": ("adamw", {_B2: 0.999}),
    "adam, clipped": ("adamw", {_B2: 0.999, "train.clip_norm": 1.0}),
    "adam, skipping": (
        "adamw",
        {_B2: 0.999, "optimizer.wrappers": "skip_spikes(watch=both,window=32)"},
    ),
    "spam": ("spam", {}),
    "spam, density 0.25": ("spam", {"optimizer.kwargs.density": 0.25}),
    "stable_spam": ("stable_spam", {}),
}


def trials(**faults):
    """The arms, with what is put into the gradients."""
    common = {f"faults.{name}": value for name, value in faults.items()}
    return {name: arm(method, own | common) for name, (method, own) in _METHODS.items()}


def decide(results):
    return rules.all_of(
        rules.lower_loss(results, "spam", "adam"),
        rules.lower_loss(results, "spam", "adam, clipped"),
        rules.lower_loss(results, "stable_spam", "spam"),
    )
