"""ROOT and its two parts where gradients have outliers."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Under heavy-tailed noise in the gradients ROOT ends at a lower loss than Muon, by its
clip.
"""
SOURCE = "ROOT, arXiv 2511.20626, section on outliers"
RULE = """
A thousandth of the elements of every gradient gets an outlier of 30 times the leaf's
root mean square or more. It holds if the losses of ROOT and of the clip alone are
both lower than Muon's by an interval above 0, and does not if one interval lies at or
below 0.
"""

_OUTLIERS = {"faults.outliers": 1e-3, "faults.outlier_scale": 30.0}
_PARTS = {
    "muon": ("muon", {}),
    "coefficients alone": ("root", {"optimizer.kwargs.quantile": 1.0}),
    "clip alone": ("root", {"optimizer.kwargs.ns_coeffs": "muon"}),
    "root": ("root", {}),
}


def trials():
    return {
        name: arm(method, own | _OUTLIERS) for name, (method, own) in _PARTS.items()
    }


def decide(results):
    return rules.all_of(
        rules.lower_loss(results, "root", "muon"),
        rules.lower_loss(results, "clip alone", "muon"),
    )
