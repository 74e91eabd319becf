"""The learning rate of every optimizer, on a small language model of bytes.

Twelve optimizers under one schedule, cosine after 5% of warm-up, and AdamW and
COSMOS under UBA too: four rates each, two apart, about the best of runs of 60 steps,
and two more seeds at the best one. That makes 84 runs of 200 steps of 1,024 bytes, a
LLaMA of 0.23 M parameters. Budget, data, model and number of rates are the same for
all; weight decay is 0.1 in those that have it, the other arguments stay as their papers
have them. Muon and ROOT give each matrix's update a fixed norm, so that the leaves
which are no hidden matrix have a rate of their own, 4e-3; elsewhere all leaves take the
one rate. Half a minute each on a core.
"""

# The lowest of four rates.
_LOWEST = {
    "adahessian": 0.04,
    "adamw": 2e-3,
    "cosmos": 2e-3,
    "lanton": 5e-3,
    "lion": 5e-4,
    "muon": 5e-3,
    "root": 5e-3,
    "scion": 1.25e-4,
    "sgd": 0.05,
    "soap": 2e-3,
    "spam": 2e-3,
    "stable_spam": 2e-3,
}
_SMALL = {
    "model.width": 64,
    "model.hidden": 176,
    "task.eval_windows": 128,
    "train.batch_size": 8,
    "train.steps": 200,
    "train.checkpoint_every": 100,
}
_APART = {"optimizer.adam_learning_rate": 4e-3}


# The best of the four, which two more seeds get.
_BEST = {
    ("adahessian", "cosine"): 0.08,
    ("adamw", "cosine"): 8e-3,
    ("adamw", "uba"): 4e-3,
    ("cosmos", "cosine"): 4e-3,
    ("cosmos", "uba"): 4e-3,
    ("lanton", "cosine"): 0.02,
    ("lion", "cosine"): 2e-3,
    ("muon", "cosine"): 0.02,
    ("root", "cosine"): 0.02,
    ("scion", "cosine"): 5e-4,
    ("sgd", "cosine"): 0.2,
    ("soap", "cosine"): 8e-3,
    ("spam", "cosine"): 8e-3,
    ("stable_spam", "cosine"): 8e-3,
}


def _part(name, schedule, rates, seeds=(0,)):
    apart = _APART if name in ("muon", "root") else {}
    return {
        "name": f"{name}, {schedule}" + (", seeds" if len(seeds) > 1 else ""),
        "config": "configs/stdlib_lm.py",
        "overrides": _SMALL
        | {"optimizer.name": name, "schedule.name": schedule}
        | apart,
        "axes": {"optimizer.learning_rate": rates},
        "seeds": seeds,
    }


def get_sweep():
    return [
        *(_part(*key, [_LOWEST[key[0]] * 2.0**k for k in range(4)]) for key in _BEST),
        *(_part(*key, [rate], seeds=(1, 2)) for key, rate in _BEST.items()),
    ]
