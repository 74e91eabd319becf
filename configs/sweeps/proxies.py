"""Signs of instability in small models: logits and sensitivity by width.

LLaMA of three widths at seven learning rates a factor 4 apart: plain, with qk-norm,
with z-loss and with both. Every 20 steps the records have the largest attention logits
and output logits. Expected (Wortsman et al., arXiv 2309.14322): at high rates logits
grow and the loss gets worse; qk-norm holds attention logits down and z-loss output
logits, so that the loss depends less on the rate, the more so the wider the model. The
report's column "sensitivity" has that number by width. 84 runs, an hour and a half on
two cores.
"""

_WIDTHS = (64, 128, 256)
_VARIANTS = {
    "plain": {},
    "qk-norm": {"model.qk_norm": True},
    "z-loss": {"model.z_loss": 1e-4},
    "qk-norm, z-loss": {"model.qk_norm": True, "model.z_loss": 1e-4},
}


def get_sweep():
    return [
        {
            "name": f"width {width}, {name}",
            "config": "configs/stdlib_lm.py",
            "overrides": {
                "model.unroll": True,
                "model.width": width,
                "model.hidden": width * 11 // 4,
                "task.eval_windows": 128,
                "train.batch_size": 8,
                "train.steps": 200,
                "train.diagnostics_every": 20,
                "schedule.warmup_fraction": 0.1,
                **options,
            },
            "axes": {
                "optimizer.learning_rate": [1e-3 * 4.0**i for i in range(-1, 6)],
            },
        }
        for width in _WIDTHS
        for name, options in _VARIANTS.items()
    ]
