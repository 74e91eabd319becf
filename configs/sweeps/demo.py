"""AdamW and COSMOS, each under cosine and under UBA: what the README compares.

`configs/stdlib_lm.py`, a LLaMA of 0.86 M parameters and 400 steps: five rates for each
pair, two apart, and two more seeds at the best. That makes 28 runs, about a minute each
on a core. The rate is that of all leaves.
"""

_RATES = {
    ("adamw", "cosine"): [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
    ("adamw", "uba"): [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
    ("cosmos", "cosine"): [5e-4, 1e-3, 2e-3, 4e-3, 8e-3],
    ("cosmos", "uba"): [5e-4, 1e-3, 2e-3, 4e-3, 8e-3],
}
# The best of the five, which two more seeds get.
_BEST = {
    ("adamw", "cosine"): 4e-3,
    ("adamw", "uba"): 4e-3,
    ("cosmos", "cosine"): 2e-3,
    ("cosmos", "uba"): 2e-3,
}


def _part(name, schedule, rates, seeds=(0,)):
    return {
        "name": f"{name}, {schedule}" + (", seeds" if len(seeds) > 1 else ""),
        "config": "configs/stdlib_lm.py",
        "overrides": {
            "model.unroll": True,
            "optimizer.name": name,
            "schedule.name": schedule,
        },
        "axes": {"optimizer.learning_rate": rates},
        "seeds": seeds,
    }


def get_sweep():
    return [
        *(_part(*key, rates) for key, rates in _RATES.items()),
        *(_part(*key, [rate], seeds=(1, 2)) for key, rate in _BEST.items()),
    ]
