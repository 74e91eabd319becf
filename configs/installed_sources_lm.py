"""x"""

from experiments import config as configs


def get_config():
    config = configs.base()
    config.task.data = "installed_sources"
    config.task.vocab_size = 32_000
    config.task.context = 256
    config.task.eval_windows = 512
    config.model.size = "60M"
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 2e-3
    config.schedule.warmup_fraction = 0.1
    config.train.steps = 1000
    config.train.batch_size = 512
    config.train.clip_norm = 1.0
    config.train.eval_every = 100
    return config
