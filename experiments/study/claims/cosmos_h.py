"""COSMOS on the sphere."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
COSMOS whose matrices stay on a sphere needs no weight decay to be as good.
"""
SOURCE = "no paper; MuonH and AdamH of marin-community/marin for other directions"
RULE = """
It holds if its loss is at most 0.01 nats above that of COSMOS with tuned decay, with
its whole interval, and does not if the whole interval is above that.
"""


def trials():
    return {name: arm(name, deep=True) for name in ("cosmos", "cosmos_h")}


def decide(results):
    return rules.no_worse(results, "cosmos_h", "cosmos", 0.01)
