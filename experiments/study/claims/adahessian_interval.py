"""AdaHessian with its diagonal at intervals."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
AdaHessian with the Hessian's diagonal at every fifth step is as good as at every
step, at 1.2 times the cost of a step of SGD.
"""
SOURCE = "AdaHessian, arXiv 2006.00719, section on the delay"
RULE = """
On the digits with a ResNet: it holds if the loss at interval 5 is at most 0.01 nats
above that at interval 1 with its whole interval, and SGD's step has at least 1 / 1.2
of its operations; it does not if the whole interval is above that, or the operations
say otherwise.
"""

_INTERVALS = (1, 2, 3, 5)


def trials():
    every = {
        f"every {n}": arm(
            "adahessian",
            {"optimizer.kwargs.hessian_interval": n},
            task="resnet",
            rate=0.05,
            start=5,
        )
        for n in _INTERVALS
    }
    return {"sgd": arm("sgd", task="resnet", rate=0.1, start=5)} | every


def decide(results):
    return rules.all_of(
        rules.no_worse(results, "every 5", "every 1", 0.01),
        rules.smaller(results, "every 5", "sgd", "flops", 1 / 1.2),
    )


def figure(results):
    lines = {"AdaHessian": {n: f"every {n}" for n in _INTERVALS}}
    return figures.series(results, lines, "steps between diagonals", log=False)
