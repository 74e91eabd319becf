"""What every optimizer forgets: pairs of digits, one after another.

First five rates, a factor of two apart, for all digits at once, 100 steps; then, at the
best of these, the same 100 steps with five pairs of digits in turn, from three seeds.
That makes 96 runs, a few seconds each on a core.
"""

# The lowest of five rates, and the best of them for all digits at once: of some methods
# the second five, where the best of the first was at their edge.
_RATES = {
    "adahessian": (0.02, 0.16),
    "adamw": (2e-3, 4e-3),
    "cosmos": (5e-4, 1e-3),
    "lanton": (1.25e-3, 2.5e-3),
    "lion": (2.5e-4, 1e-3),
    "muon": (5e-3, 0.01),
    "root": (1.25e-3, 5e-3),
    "scion": (2.5e-4, 5e-4),
    "sgd": (0.0125, 0.05),
    "soap": (2e-3, 4e-3),
    "spam": (2e-3, 0.016),
    "stable_spam": (2e-3, 8e-3),
}


def _part(name, rates, seeds, in_turn):
    return {
        "name": f"{name}, {'in turn' if in_turn else 'at once'}",
        "config": "configs/digits.py",
        "overrides": {
            "task.name": "classes_in_turn" if in_turn else "classification",
            "train.steps": 100,
            "train.eval_every": 20,
            "schedule.name": "constant",
            "optimizer.name": name,
        }
        | ({"optimizer.adam_learning_rate": 4e-3} if name in ("muon", "root") else {}),
        "axes": {"optimizer.learning_rate": rates},
        "seeds": seeds,
    }


def get_sweep():
    return [
        *(
            _part(name, [lowest * 2.0**k for k in range(5)], (0,), in_turn=False)
            for name, (lowest, _) in _RATES.items()
        ),
        *(
            _part(name, [best], (0, 1, 2), in_turn=True)
            for name, (_, best) in _RATES.items()
        ),
    ]
