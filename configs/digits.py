"""An MLP learns scikit-learn's 1,797 digits: a whole run in seconds, no download."""

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
