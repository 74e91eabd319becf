"""The same where every 40th gradient is a thousand times too large."""

from experiments.study import rules
from experiments.study.claims import spam

CLAIM = """
Where some gradients are far too large, SPAM and Stable-SPAM end at a lower loss than
Adam with clipping.
"""
SOURCE = "SPAM, arXiv 2501.06842; Stable-SPAM, arXiv 2502.17055"
RULE = """
Every 40th gradient is a thousand times too large. It holds if both losses are lower
than that of Adam with clipping by an interval above 0, and does not if one interval
lies at or below 0. Adam that skips spikes is shown beside them.
"""


def trials():
    return spam.trials(spike_every=40)


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, name, "adam, clipped")
            for name in ("spam", "stable_spam")
        )
    )
