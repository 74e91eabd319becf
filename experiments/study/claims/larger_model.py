"""The ranking of the methods on a LLaMA of 0.86 M parameters."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Muon, SOAP and COSMOS end at a lower loss than AdamW on a LLaMA of 0.86 M parameters
too, as papers say of larger ones.
"""
SOURCE = "the papers' tables, where gains stay or grow with the model"
RULE = """
It holds if the losses of Muon, SOAP and COSMOS are each lower than AdamW's by an
interval above 0, and does not if one interval lies at or below 0. AdamW and COSMOS
under UBA, which `make demo` trains too, are shown and do not decide.
"""

_METHODS = ("adamw", "muon", "soap", "cosmos", "root", "lanton", "lion")
_UBA = {"schedule.name": "uba"}


def trials():
    plain = {name: arm(name, task="medium", start=3) for name in _METHODS}
    return plain | {
        f"{name}, UBA": arm(name, _UBA, task="medium", start=3)
        for name in ("adamw", "cosmos")
    }


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, name, "adamw")
            for name in ("muon", "soap", "cosmos")
        )
    )
