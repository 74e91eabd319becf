"""LANTON's two measures of the noise."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Noise measured between consecutive gradients serves as well as that between two
independent minibatches.
"""
SOURCE = "LANTON, arXiv 2510.14009, its practical variant"
RULE = """
It holds if the loss with consecutive gradients is at most 0.01 nats above that with
paired ones, whose steps read twice the data, with its whole interval; it does not if
the whole interval is above that.
"""


def trials():
    return {
        noise: arm("lanton", {"optimizer.kwargs.noise": noise})
        for noise in ("consecutive", "paired")
    }


def decide(results):
    return rules.no_worse(results, "consecutive", "paired", 0.01)
