"""UBA's phi against other schedules at three budgets: one claim for each method."""

from experiments.study import figures, rules
from experiments.study.arms import Arm
from experiments.study.methods import arm
from experiments.study.results import Results

_BUDGETS = (100, 200, 400)
SOURCE = "UBA, arXiv 2505.24452, its main tables"
RULE = """
Of the phi 0.5, 1 and 4 that with the lowest mean counts. It holds at a budget if its
loss is lower than with each of the other four schedules by an interval above 0, and
does not if one interval lies at or below 0. The claim holds if it does at all three
budgets, and does not if it does not at one.
"""

_PHIS = (0.5, 1.0, 4.0)
_SCHEDULES = {
    "cosine": {},
    "linear": {"schedule.name": "linear"},
    "constant and decay": {"schedule.name": "wsd"},
    "refined": {"schedule.name": "refined"},
} | {
    f"phi {phi:g}": {"schedule.name": "uba", "schedule.kwargs.phi": phi}
    for phi in _PHIS
}


def trials(method: str) -> dict[str, Arm]:
    """The arms for a method: each schedule at each budget, its rate tuned."""
    made = {}
    for steps in _BUDGETS:
        for name, own in _SCHEDULES.items():
            given = own | {"train.steps": steps, "train.eval_every": steps // 10}
            if name == "refined":
                # By the authors: l2 norms for SGD, l1 norms for methods like Adam.
                norm = "l2" if method == "sgd" else "l1"
                given |= {"schedule.kwargs.norm": norm}
            found = arm(method, given, start=3)
            source = _name("linear", steps)
            refines = source if name == "refined" else ""
            made[_name(name, steps)] = found._replace(refines=refines)
    return made


def decide(results: Results) -> rules.Verdict:
    """The claim's rule."""
    return rules.share_of({f"{steps} steps": _at(results, steps) for steps in _BUDGETS})


def _at(results: Results, steps: int) -> rules.Verdict:
    """The rule at one budget."""
    names = [_name(f"phi {phi:g}", steps) for phi in _PHIS]
    best = min(names, key=lambda name: results[name].loss or 0.0)
    others = [name for name in _SCHEDULES if not name.startswith("phi")]
    return rules.all_of(
        *(rules.lower_loss(results, best, _name(x, steps)) for x in others)
    )


def figure(results: Results):
    """Loss against phi, and against the budget for the other schedules."""
    lines = {
        name: {steps: _name(name, steps) for steps in _BUDGETS} for name in _SCHEDULES
    }
    return figures.series(results, lines, "steps")


def _name(schedule: str, steps: int) -> str:
    return f"{schedule}, {steps} steps"
