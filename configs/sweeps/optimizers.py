"""The learning rate of every optimizer on the demo's language model.

Twelve optimizers, six rates each, two apart, about what their papers advise for a model
this small: 72 runs of 400 steps of 2,048 bytes. A minute or two each on two cores, so
that the whole takes two hours; `--config.train.steps=100` makes a quick one.
"""

# The middle of each grid: six rates, from a quarter of it to eight times it.
_MIDDLE = {
    "adahessian": 0.02,
    "adamw": 4e-3,
    "cosmos": 2e-3,
    "lanton": 5e-3,
    "lion": 5e-4,
    "muon": 1e-2,
    "root": 1e-2,
    "scion": 5e-4,
    "sgd": 0.1,
    "soap": 4e-3,
    "spam": 4e-3,
    "stable_spam": 4e-3,
}


def get_sweep():
    return [
        {
            "name": name,
            "config": "configs/stdlib_lm.py",
            "overrides": {"optimizer.name": name},
            "axes": {
                "optimizer.learning_rate": [middle * 2.0**k for k in range(-2, 4)]
            },
        }
        for name, middle in _MIDDLE.items()
    ]
