"""An MLP learns scikit-learn's 1,797 digits: no download.

1,500 are trained on, 297 validated. Expected of AdamW: validation loss 0.044 and 98.7%
of the digits right after 300 steps, in 6 seconds on two cores.
"""

from experiments import config as configs


def get_config():
    config = configs.base()
    config.task.name = "classification"
    config.task.data = "digits"
    config.model.name = "mlp"
    config.optimizer.learning_rate = 3e-3
    config.train.steps = 300
    config.train.batch_size = 100
    config.train.eval_every = 30
    return config
