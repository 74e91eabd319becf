"""COSMOS's gamma, the weight of the orthogonalized rest."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
COSMOS is best with gamma between 0.25 and 0.5.
"""
SOURCE = "COSMOS, arXiv 2502.17410, ablation of gamma"
RULE = """
It holds if the loss at 0.25 or at 0.5, whichever mean is lower, is lower than at 0.05
and than at 2, by intervals above 0.
"""

_GAMMAS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


def trials():
    return {
        f"gamma {gamma:g}": arm("cosmos", {"optimizer.kwargs.gamma": gamma})
        for gamma in _GAMMAS
    }


def decide(results):
    best = min("gamma 0.25", "gamma 0.5", key=lambda name: results[name].loss)
    return rules.all_of(
        rules.lower_loss(results, best, "gamma 0.05"),
        rules.lower_loss(results, best, "gamma 2"),
    )


def figure(results):
    lines = {"COSMOS": {gamma: f"gamma {gamma:g}" for gamma in _GAMMAS}}
    return figures.series(results, lines, "gamma")
