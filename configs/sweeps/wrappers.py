"""Five optimizers, each plain and with each wrapper, on a small language model.

Model, data and 200 steps are those of `optimizers.py`. One seed at five rates, two
apart, and two more at the best of them: 315 runs, the rates first, about 20 seconds
each on a core. In the middle is the best rate of `optimizers.py`, and on a sphere a
relative step of 4%. Where another rate is the best, it stands in `_BEST`.
"""

# Optimizer -> rate, and rate of the leaves that are no hidden matrix: None, the same.
_OPTIMIZERS = {
    "adamw": (8e-3, None),
    "muon": (2e-2, 4e-3),
    "cosmos": (4e-3, None),
    "root": (2e-2, 4e-3),
    "soap": (8e-3, None),
}
_WRAPPERS = {
    "plain": {},
    "cautious": {"optimizer.wrappers": "cautious"},
    "cautious decay": {"optimizer.kwargs.cautious_decay": True},
    "sphere": {"optimizer.wrappers": "hyperball"},
    "neurons": {"optimizer.wrappers": "normalize_neurons"},
    "8 bits": {"optimizer.wrappers": "small_state"},
    "bfloat16 state": {"optimizer.wrappers": "small_state(dtype=bfloat16)"},
    "split weights": {"optimizer.wrappers": "split_weights"},
    "skipped spikes": {"optimizer.wrappers": "skip_spikes(watch=both,window=32)"},
}
_RELATIVE = 4e-2
_SMALL = {
    "model.unroll": True,
    "model.width": 64,
    "model.hidden": 176,
    "task.eval_windows": 128,
    "train.batch_size": 8,
    "train.steps": 200,
    "train.eval_every": 50,
    "train.checkpoint_every": 100,
}
# Where the best of the five rates is not the one in the middle.
_BEST = {
    ("muon", "cautious"): 1e-2,
    ("cosmos", "cautious"): 2e-3,
    ("root", "cautious"): 1e-2,
    ("adamw", "sphere"): 1e-2,
    ("cosmos", "sphere"): 8e-2,
    ("root", "sphere"): 8e-2,
    ("soap", "sphere"): 2e-2,
}


def _parts(optimizer, wrapper):
    rate, others = _OPTIMIZERS[optimizer]
    if wrapper == "sphere":
        rate, others = _RELATIVE, others or rate
    overrides = _SMALL | {"optimizer.name": optimizer} | _WRAPPERS[wrapper]
    if others:
        overrides["optimizer.adam_learning_rate"] = others
    best = _BEST.get((optimizer, wrapper), rate)
    rates = {"seeds": [best], "rates": [rate * 2.0**k for k in range(-2, 3)]}
    return [
        {
            "name": f"{optimizer}, {wrapper}, {what}",
            "config": "configs/stdlib_lm.py",
            "overrides": overrides,
            "axes": {"optimizer.learning_rate": values},
            "seeds": (0, 1, 2) if what == "seeds" else (0,),
        }
        for what, values in rates.items()
    ]


def get_sweep():
    parts = [_parts(x, wrapper) for wrapper in _WRAPPERS for x in _OPTIMIZERS]
    return [pair[1] for pair in parts] + [pair[0] for pair in parts]
