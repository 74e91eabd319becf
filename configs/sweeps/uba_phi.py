"""UBA's phi by budget: 25, 50 and 100% of the demo's 400 steps, AdamW, three seeds.

phi = 2 is cosine decay; below it the rate stays high longer. 45 runs, 26 full ones'
worth of steps: half an hour to an hour on two cores.
"""


def get_sweep():
    return {
        "config": "configs/stdlib_lm.py",
        "overrides": {"schedule.name": "uba", "train.eval_every": 25},
        "axes": {
            "train.steps": [100, 200, 400],
            "schedule.kwargs.phi": [0.25, 0.5, 1.0, 2.0, 4.0],
        },
        "seeds": [0, 1, 2],
    }
