"""LANTON's alpha, b2 and rate, by Halton's sequence on the demo's language model.

alpha = 0 would be no adaptation to the noise. 16 points, one seed: 16 runs of 400
steps, half an hour on two cores.
"""


def get_sweep():
    return {
        "config": "configs/stdlib_lm.py",
        "overrides": {"optimizer.name": "lanton"},
        "design": "halton",
        "axes": {
            "optimizer.kwargs.alpha": (0.1, 10.0, "log"),
            "optimizer.kwargs.b2": (0.5, 0.99, "linear"),
            "optimizer.learning_rate": (2e-3, 2e-2, "log"),
        },
        "trials": 16,
    }
