"""COSMOS's gamma, the weight of the orthogonalized rest."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
COSMOS is best with gamma between 0.25 and 0.5.
"""
SOURCE = "COSMOS, arXiv 2502.17410, ablation of gamma"
RULE = """
It holds if the loss at 0.25 or at 0.5, whichever mean is lower, is lower than at each
of 0.05, 0.1, 1 and 2 by an interval above 0, and does not if one interval lies at or
below 0.
"""

_GAMMAS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
_BEST = (0.25, 0.5)


def trials():
    return {
        f"gamma {gamma:g}": arm("cosmos", {"optimizer.kwargs.gamma": gamma})
        for gamma in _GAMMAS
    }


def decide(results):
    names = [f"gamma {gamma:g}" for gamma in _BEST]
    best = min(names, key=lambda name: results[name].loss)
    others = [f"gamma {gamma:g}" for gamma in _GAMMAS if gamma not in _BEST]
    return rules.all_of(*(rules.lower_loss(results, best, name) for name in others))


def figure(results):
    lines = {"COSMOS": {gamma: f"gamma {gamma:g}" for gamma in _GAMMAS}}
    return figures.series(results, lines, "gamma")
