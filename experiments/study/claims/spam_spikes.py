"""The same where every 40th gradient is a thousand times too large."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
SPAM and Stable-SPAM stand spikes of the gradient better than Adam with clipping.
"""
SOURCE = "SPAM, arXiv 2501.06842; Stable-SPAM, arXiv 2502.17055"
RULE = """
It holds if both losses are lower than that of Adam with clipping by an interval above
0, and does not if one interval lies at or below 0. Adam that skips spikes is shown
beside them.
"""

_SPIKES = {"faults.spike_every": 40}
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


def trials():
    return {
        name: arm(method, own | _SPIKES) for name, (method, own) in _METHODS.items()
    }


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, name, "adam, clipped")
            for name in ("spam", "stable_spam")
        )
    )
