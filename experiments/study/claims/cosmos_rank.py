"""COSMOS's rank."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
A rank of 5% of the width is enough for COSMOS: larger ones gain little.
"""
SOURCE = "COSMOS, arXiv 2502.17410, ablation of the rank"
RULE = """
It holds if the loss at rank 4, 6% of the width, is at most 0.01 nats above that at
rank 32, with its whole interval, and does not if the whole interval is above that.
"""

_RANKS = (2, 4, 8, 16, 32)


def trials():
    return {
        f"rank {rank}": arm("cosmos", {"optimizer.kwargs.rank": rank})
        for rank in _RANKS
    }


def decide(results):
    return rules.no_worse(results, "rank 4", "rank 32", 0.01)


def figure(results):
    lines = {"COSMOS": {rank: f"rank {rank}" for rank in _RANKS}}
    return figures.series(results, lines, "rank, of a width of 64")
