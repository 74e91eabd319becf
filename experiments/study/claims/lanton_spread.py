"""How far LANTON's rates of the hidden layers lie apart at the start."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
At the start LANTON's rates of the hidden layers differ by 25%.
"""
SOURCE = "LANTON, arXiv 2510.14009, its figure of layerwise rates"
RULE = """
The smallest rate of a hidden layer is so much below the largest at the 20th step, for
the exponents 1/2 and 1, at alpha 0.1 and 1. For each it holds if the whole interval
lies between 15% and 35%, and does not if it lies outside; the claim has the best of
the four.
"""

_CASES = [(p, alpha) for p in (0.5, 1.0) for alpha in (0.1, 1.0)]


def trials():
    return {
        _name(p, alpha): arm(
            "lanton",
            {
                "train.diagnostics_every": 20,
                "optimizer.kwargs.exponent": p,
                "optimizer.kwargs.alpha": alpha,
            },
            start=1,
        )
        for p, alpha in _CASES
    }


def decide(results):
    return rules.best_of(
        *(
            rules.within(
                rules.interval(_spreads(results[_name(*case)])),
                *(0.15, 0.35),
                f"with {_name(*case)} the rates differ by {{}}",
                ".1%",
            )
            for case in _CASES
        )
    )


def _name(p, alpha):
    return f"exponent {p:g} and alpha {alpha:g}"


def _spreads(tried):
    # One number a seed: that of the first look.
    curves = [row.layer_spread for row in tried.runs.values()]
    return [curve[min(curve)] for curve in curves if curve]


figure = figures.spreads
