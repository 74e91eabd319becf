"""Every optimizer at its best rate, with checkpoints to look at.

Model, data, steps and rates are those of `optimizers.py`; checkpoints of 50, 100, 150
and 200 steps stay. Then

    python -m experiments.look runs/inside --steps=50,100,200 --examples=16 --order=16
    python -m experiments.report runs/inside --output=results/sweeps/inside

These are 12 runs, 20 seconds each on a core.
"""

_RATES = {
    "adahessian": 0.08,
    "adamw": 8e-3,
    "cosmos": 4e-3,
    "lanton": 0.02,
    "lion": 2e-3,
    "muon": 0.02,
    "root": 0.02,
    "scion": 5e-4,
    "sgd": 0.2,
    "soap": 8e-3,
    "spam": 8e-3,
    "stable_spam": 8e-3,
}
# Their updates have a fixed norm: the other leaves keep AdamW's rate.
_APART = ("muon", "root")


def get_sweep():
    return [
        {
            "name": name,
            "config": "configs/stdlib_lm.py",
            "overrides": {
                "model.unroll": True,
                "model.width": 64,
                "model.hidden": 176,
                "task.eval_windows": 128,
                "train.batch_size": 8,
                "train.steps": 200,
                "train.checkpoint_every": 50,
                "train.keep_checkpoints": 0,
                "optimizer.name": name,
                "optimizer.learning_rate": rate,
            }
            | ({"optimizer.adam_learning_rate": 4e-3} if name in _APART else {}),
        }
        for name, rate in _RATES.items()
    ]
