"""COSMOS's rank and gamma, each alone about the demo's tuned point.

Nine points, two seeds: 18 runs of 400 steps, half an hour on two cores.
"""


def get_sweep():
    return {
        "config": "configs/stdlib_lm.py",
        "overrides": {
            "optimizer.name": "cosmos",
            "optimizer.learning_rate": 2e-3,
            "schedule.name": "uba",
        },
        "design": "one_at_a_time",
        "axes": {
            "optimizer.kwargs.rank": [8, 16, 32, 64, 128],
            "optimizer.kwargs.gamma": [0.05, 0.1, 0.2, 0.4, 0.8],
        },
        "seeds": [0, 1],
    }
