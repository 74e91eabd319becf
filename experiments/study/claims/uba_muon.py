"""UBA's phi against other schedules at three budgets, for Muon."""

from experiments.study import uba

CLAIM = """
For Muon UBA at its best phi ends at a lower loss than cosine, linear decay, a
constant rate with a decay at the end and the refined schedule, at 25, 50 and 100% of
the steps.
"""
SOURCE = "UBA, arXiv 2505.24452, its main tables"
RULE = """
Of the phi 0.5, 1 and 4 that with the lowest mean counts. It holds at a budget if its
loss is lower than with each of the other four schedules by an interval above 0, and
does not if one interval lies at or below 0. The claim holds if it does at all three
budgets, and does not if it does not at one.
"""


def trials():
    return uba.trials("muon")


decide = uba.decide
figure = uba.figure
