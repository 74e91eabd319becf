"""ROOT and its two parts, against Muon."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
ROOT ends at a lower loss than Muon, by its fitted coefficients and by its clip, each
of which helps alone (0.01 nats of training loss after 100 billion tokens).
"""
SOURCE = "ROOT, arXiv 2511.20626, table of its parts"
RULE = """
It holds if the loss of ROOT, that with the fitted coefficients alone and that with
the clip alone are each lower than Muon's by an interval above 0, and does not if one
interval lies at or below 0.
"""

_PARTS = {
    "muon": ("muon", {}),
    "coefficients alone": ("root", {"optimizer.kwargs.quantile": 1.0}),
    "clip alone": ("root", {"optimizer.kwargs.ns_coeffs": "muon"}),
    "root": ("root", {}),
}


def trials():
    return {name: arm(method, own) for name, (method, own) in _PARTS.items()}


def decide(results):
    others = [name for name in _PARTS if name != "muon"]
    return rules.all_of(*(rules.lower_loss(results, name, "muon") for name in others))
