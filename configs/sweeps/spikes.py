"""Robustness to spikes: every 40th gradient a thousand times too large, or none.

Six optimizers at the best rates of `optimizers.py`, its model and its 200 steps, each
without spikes, with them, and with them behind a clip of the global norm at 1: 18 runs,
a quarter of an hour on two cores. The report's figure of spikes shows the loss around
them, its table the steps to recover.
"""

_RATE = {
    "adamw": 8e-3,
    "cosmos": 4e-3,
    "lanton": 0.02,
    "lion": 2e-3,
    "spam": 8e-3,
    "stable_spam": 8e-3,
}
_SMALL = {
    "model.width": 64,
    "model.hidden": 176,
    "task.eval_windows": 128,
    "train.batch_size": 8,
    "train.steps": 200,
}


def get_sweep():
    spikes = {"faults.spike_every": 40, "faults.spike_scale": 1000.0}
    return [
        {
            "name": f"{name}, {what}",
            "config": "configs/stdlib_lm.py",
            "overrides": _SMALL
            | {"optimizer.name": name, "optimizer.learning_rate": rate}
            | faults,
        }
        for name, rate in _RATE.items()
        for what, faults in {
            "no spikes": {},
            "spikes": spikes,
            "spikes, clipped": spikes | {"train.clip_norm": 1.0},
        }.items()
    ]
