"""Five optimizers at 60M and 130M parameters: what to run first on an accelerator.

LLaMAs of both sizes on the BPE tokens of all Python sources of the machine, 1,000 steps
of 131,072 tokens, one seed: 10 runs. Rates, decays and the rate of the other leaves are
the best of the study's claim `methods` at a width of 64, the rates times the root of 64
over the width: between widths of 32 and 128 the best rates of seven methods
(`width_sensitivity`) stay as they are or fall with the width. Not run here. At 40% of
an H200's 990 TFLOP/s a run takes 2 minutes (60M) or 5 (130M), an estimate; for a short
check add `--config.train.steps=300`.
"""

_WIDTHS = {"60M": 512, "130M": 768}
# Rate, rate of the other leaves, weight decay.
_BEST = {
    "adamw": (4e-3, None, 0.3),
    "muon": (0.02, 0.016, 0.3),
    "cosmos": (2e-3, 0.064, 1.37e-4),
    "root": (0.01, 0.064, 0.0333),
    "soap": (0.016, 8e-3, 0.3),
}


def get_sweep():
    parts = []
    for size, width in _WIDTHS.items():
        scale = (64 / width) ** 0.5
        for name, (rate, others, decay) in _BEST.items():
            own = {
                "model.size": size,
                "optimizer.name": name,
                "optimizer.learning_rate": float(f"{rate * scale:.3g}"),
                "optimizer.weight_decay": decay,
                "train.accumulate": 4,
            }
            if others:
                own["optimizer.adam_learning_rate"] = float(f"{others * scale:.3g}")
            parts.append(
                {
                    "name": f"{name}, {size}",
                    "config": "configs/installed_sources_lm.py",
                    "overrides": own,
                }
            )
    return parts
