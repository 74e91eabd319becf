"""One run, forked to several optimizers: where do they go from the same weights?

First the trunk, 100 steps of AdamW:

    python -m experiments.train --config=configs/stdlib_lm.py --workdir=runs/trunk --config.model.width=64 --config.model.hidden=176 --config.train.steps=100

Then this sweep: 100 more steps of six optimizers from its last weights, 200 steps in
all. Then the barriers between any two of its points:

    python -m experiments.barrier runs/fork/POINT runs/fork/OTHER

That makes 6 runs of half a minute each on two cores.
"""  # noqa: E501

_RATE = {
    "adamw": 4e-3,
    "cosmos": 2e-3,
    "lanton": 0.01,
    "muon": 0.01,
    "soap": 2e-3,
    "spam": 4e-3,
}


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
                "train.steps": 100,
                "train.fork_run": "runs/trunk",
                "optimizer.name": name,
                "optimizer.learning_rate": rate,
            },
        }
        for name, rate in _RATE.items()
    ]
