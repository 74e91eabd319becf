"""The precision policies of accelerators against float32."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Products of Newton-Schulz in bfloat16, and activations in bfloat16, cost no loss.
"""
SOURCE = """
the authors' code of Muon, COSMOS and Scion, which orthogonalizes in bfloat16
"""
RULE = """
It holds if each loss is at most 0.01 nats above that in float32, with its whole
interval, and does not if one interval lies wholly above that.
"""

_ACTIVATIONS = {"model.dtype": "bfloat16"}
_PRODUCTS = {"optimizer.kwargs.ns_dtype": "bfloat16"}
_CASES = {
    "adamw": {"activations": _ACTIVATIONS},
    "muon": {"products": _PRODUCTS, "both": _PRODUCTS | _ACTIVATIONS},
    "cosmos": {"products": _PRODUCTS, "both": _PRODUCTS | _ACTIVATIONS},
}


def trials():
    plain = {f"{name} in float32": arm(name, start=3) for name in _CASES}
    return plain | {
        f"{name}, {what}": arm(name, own, start=3)
        for name, cases in _CASES.items()
        for what, own in cases.items()
    }


def decide(results):
    return rules.share_of(
        {
            f"{name}, {what}": rules.no_worse(
                results, f"{name}, {what}", f"{name} in float32", 0.01
            )
            for name, cases in _CASES.items()
            for what in cases
        }
    )
