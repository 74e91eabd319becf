"""Larger batches at square-root rates, with and without as many steps.

AdamW at batches of 4 to 64 windows. The rate grows with the root of the batch (Hoffer
et al., arXiv 1705.08741). Under "same data" all runs see as many windows, so that large
batches make few steps; with "regime adaptation" all make as many steps, as that paper
asks: what large batches lose is the number of steps, not their size. At 16
both are the same, which makes 9 runs, 20 minutes on two cores.
"""

_BATCHES = (4, 8, 16, 32, 64)
_FIRST, _RATE, _STEPS = 16, 8e-3, 200


def get_sweep():
    return [
        {
            "name": f"batch {batch}, {name}",
            "config": "configs/stdlib_lm.py",
            "overrides": {
                "model.unroll": True,
                "model.width": 64,
                "model.hidden": 176,
                "task.eval_windows": 128,
                "train.batch_size": batch,
                "train.steps": steps,
                "optimizer.name": "adamw",
                "optimizer.learning_rate": _RATE * (batch / _FIRST) ** 0.5,
            },
        }
        for batch in _BATCHES
        for name, steps in {
            "same data": _STEPS * _FIRST // batch,
            "regime adaptation": _STEPS,
        }.items()
    ]
