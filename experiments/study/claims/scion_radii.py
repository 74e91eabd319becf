"""Scion's radii."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Scion's radii of 50 for hidden matrices and 3000 for embeddings and head serve for
a model of 0.23 M parameters too.
"""
SOURCE = "Scion, arXiv 2502.07529, the setting of nanoGPT"
RULE = """
It holds if the loss at these radii is at most 0.02 nats above that at each other pair
tried, with the whole intervals, and does not if it is above that at one of them.
"""

_HIDDEN = (12.5, 50.0, 200.0)
_EMBEDDING = (300.0, 3000.0, 30000.0)


def trials():
    pairs = [(h, 3000.0) for h in _HIDDEN] + [(50.0, e) for e in _EMBEDDING]
    return {
        f"{h:g}, {e:g}": arm(
            "scion",
            {
                "optimizer.kwargs.hidden_radius": h,
                "optimizer.kwargs.embedding_radius": e,
            },
        )
        for h, e in dict.fromkeys(pairs)
    }


def decide(results):
    others = [name for name in results if name != "50, 3000"]
    return rules.all_of(
        *(rules.no_worse(results, "50, 3000", name, 0.02) for name in others)
    )
