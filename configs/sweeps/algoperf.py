"""AlgoPerf's protocol for tuning from outside: 3 studies of 5 quasi-random trials.

In each study a method's best trial is that which reaches the target soonest; its score
is the median over the studies (Dahl et al., arXiv 2306.07179, section 4.4). Here the
target is the best loss of AdamW, and a study is a seed with its part of Halton's
sequence. The report has both medians, of the seconds of training, which are AlgoPerf's
score and mean something on machines that do nothing else, and of the steps:

    python -m experiments.report runs/s --baseline=adamw \\
        --tuned=optimizer.weight_decay,optimizer.kwargs.b1

Rate, decay and b1 are drawn, warm-up is 5%. AdamW and COSMOS: 30 runs of
200 steps, half an hour on two cores.
"""

_RATES = {"adamw": (1e-3, 3e-2, "log"), "cosmos": (5e-4, 1.5e-2, "log")}
_STUDIES = 3
_TRIALS = 5


def get_sweep():
    return [
        {
            "name": f"{name}, study {study}",
            "config": "configs/stdlib_lm.py",
            "overrides": {
                "optimizer.name": name,
                "model.width": 64,
                "model.hidden": 176,
                "train.batch_size": 8,
                "train.steps": 200,
            },
            "design": "halton",
            "axes": {
                "optimizer.learning_rate": rates,
                "optimizer.weight_decay": (5e-3, 1.0, "log"),
                "optimizer.kwargs.b1": (0.8, 0.98, "linear"),
            },
            "trials": _TRIALS,
            "skip": _TRIALS * study,
            "seeds": [study],
        }
        for name, rates in _RATES.items()
        for study in range(_STUDIES)
    ]
