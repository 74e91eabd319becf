"""AdaHessian against Adam and SGD on images."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
AdaHessian classifies images better than AdamW and SGD (93.08% against 92.72% with
ResNet32 on CIFAR-10).
"""
SOURCE = "AdaHessian, arXiv 2006.00719, table of image classification"
RULE = """
On scikit-learn's digits, with a ResNet and a ViT, by the loss: the accuracy, shown
beside it, is coarse on so few images. It holds if its loss is lower than AdamW's and
SGD's by an interval above 0 on both, and does not if one interval lies at or below 0.
"""

_MODELS = ("resnet", "vit")
_RATES = {"adamw": 3e-3, "sgd": 0.1, "adahessian": 0.05}


def trials():
    return {
        f"{name}, {model}": arm(name, task=model, rate=rate, start=5)
        for model in _MODELS
        for name, rate in _RATES.items()
    }


def decide(results):
    return rules.all_of(
        *(
            rules.lower_loss(results, f"adahessian, {model}", f"{name}, {model}")
            for model in _MODELS
            for name in ("adamw", "sgd")
        )
    )
