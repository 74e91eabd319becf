"""UBA's phi against other schedules at three budgets, for Muon."""

from experiments.study import uba

CLAIM = """
For Muon UBA at its best phi ends at a lower loss than cosine, linear decay, a
constant rate with a decay at the end and the refined schedule, at 25, 50 and 100% of
the steps.
"""
SOURCE = uba.SOURCE
RULE = uba.RULE


def trials():
    return uba.trials("muon")


decide = uba.decide
figure = uba.figure
