"""ResNet-20."""

from experiments import config as configs


def get_config():
    config = configs.base()
    config.task.name = "classification"
    config.task.data = "cifar10"
    config.task.path = "data/cifar-10-python.tar.gz"
    config.task.augment = True
    config.model.name = "resnet"
    config.model.size = "20"
    config.optimizer.learning_rate = 3e-3
    config.schedule.warmup_fraction = 0.05
    config.train.steps = 64_000
    config.train.batch_size = 128
    config.train.eval_every = 390
    return config
