"""ResNet-20 on CIFAR-10, with He et al.'s batch, length and augmentation.

The tarball `data/cifar-10-python.tar.gz` is the one that its authors offer at
https://www.cs.toronto.edu/~kriz/cifar.html; its checksum is verified.
`--config.model.size=32` and so on for the deeper ones, `--config.model.name=vit
--config.model.size=ti` for a transformer.

Expected: the paper has 8.75% error for ResNet-20 and 7.51% for ResNet-32 after 64,000
steps of SGD (arXiv 1512.03385, table 6), with BatchNorm where this model has GroupNorm.
Neither was reached here, where the data set is not at hand. On two cores, shared with
others, a step takes 0.65 s (ResNet-32: 1.1 s), the whole run half a day. An epoch is
390 steps.
"""

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
