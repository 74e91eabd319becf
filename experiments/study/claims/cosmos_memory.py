"""What COSMOS keeps, beside AdamW and SOAP."""

from experiments.study import figures, rules
from experiments.study.methods import arm

CLAIM = """
COSMOS keeps about half of AdamW's state and a fifth of SOAP's (13 d^2 a block against
24 and 66 at a rank of 5% of the width).
"""
SOURCE = "COSMOS, arXiv 2502.17410, section on memory"
RULE = """
The rank is 8, an eighth of the width, and embeddings have AdamW's state in all three:
it holds if AdamW's state is at least 1.4 times and SOAP's at least 3 times COSMOS's.
No seed changes these numbers, so there is no interval.
"""


def trials():
    return {name: arm(name, deep=True) for name in ("adamw", "soap", "cosmos")}


def decide(results):
    return rules.all_of(
        rules.smaller(results, "cosmos", "adamw", "state_bytes", 1.4),
        rules.smaller(results, "cosmos", "soap", "state_bytes", 3.0),
    )


figure = figures.losses_and_states
