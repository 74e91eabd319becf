"""Sensitivity to the rate by width."""

from experiments.study import figures, rules
from experiments.study.methods import grid

CLAIM = """
AdamW gets more sensitive to its rate as models get wider, and methods with updates of
a fixed norm are less sensitive than AdamW in wide ones.
"""
SOURCE = """
Small-scale proxies, arXiv 2309.14322, for AdamW; Scion, arXiv 2502.07529, for the
other part
"""
RULE = """
Five rates a factor of 4 apart, all seeds at all of them. It holds if AdamW's
sensitivity at a width of 128 is above that at 32 by an interval above 0, and Muon's
and Scion's at 128 are each below AdamW's by one; it does not if one interval lies at
or below 0. COSMOS, ROOT, LANTON and Lion are beside them with one seed, and decide
nothing.
"""

_WIDTHS = (32, 64, 128)
_RATES = {"adamw": 4e-3, "muon": 1e-2, "scion": 2.5e-4}
_BESIDE = {"cosmos": 2e-3, "root": 1e-2, "lanton": 1e-2, "lion": 1e-3}


def _arm(name, width):
    return f"{name}, width {width}"


def trials():
    return {
        _arm(name, width): grid(
            name,
            {"model.width": width, "model.hidden": width * 11 // 4},
            rate,
            seeds=3 if name in _RATES else 1,
        )
        for name, rate in (_RATES | _BESIDE).items()
        for width in _WIDTHS
    }


def decide(results):
    wide = "adamw, width 128"
    return rules.all_of(
        rules.less_sensitive(results, "adamw, width 32", wide),
        rules.less_sensitive(results, "muon, width 128", wide),
        rules.less_sensitive(results, "scion, width 128", wide),
    )


def figure(results):
    lines = {
        name: {width: _arm(name, width) for width in _WIDTHS}
        for name in _RATES | _BESIDE
    }
    label = "sensitivity to the rate (nats)"
    measure = figures.sensitivities
    return figures.series(results, lines, "width", measure=measure, label=label)
