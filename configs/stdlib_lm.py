"""A 0.86 M LLaMA learns Python's standard library, byte by byte, in 400 steps."""

from experiments import config as configs


def get_config():
    config = configs.base()
    config.schedule.warmup_fraction = 0.05
    config.train.steps = 400
    config.train.eval_every = 20
    return config
