"""The matrix methods on images."""

from experiments.study import rules
from experiments.study.methods import arm

CLAIM = """
Matrix methods beat AdamW and SGD on images too.
"""
SOURCE = """
Muon, arXiv 2502.16982, SOAP, arXiv 2409.11321, and COSMOS, arXiv 2502.17410, for
language models
"""
RULE = """
On scikit-learn's digits, with a ResNet and a ViT: it holds for a method and a model
if its loss is lower than AdamW's and than SGD's, each by an interval above 0, and does
not if one interval lies at or below 0. Methods are Muon, SOAP, COSMOS and LANTON. The
claim holds if at least two thirds of the cases do, and does not if that many cannot.
"""

_MODELS = ("resnet", "vit")
_RATES = {"adamw": 3e-3, "sgd": 0.1, "muon": 1e-2, "soap": 3e-3, "cosmos": 2e-3}
_RATES |= {"lanton": 1e-2, "lion": 5e-4}


def trials():
    return {
        f"{name}, {model}": arm(name, task=model, rate=rate, start=5)
        for model in _MODELS
        for name, rate in _RATES.items()
    }


def decide(results):
    return rules.share_of(
        {
            f"{name}, {model}": rules.all_of(
                *(
                    rules.lower_loss(results, f"{name}, {model}", f"{other}, {model}")
                    for other in ("adamw", "sgd")
                )
            )
            for model in _MODELS
            for name in ("muon", "soap", "cosmos", "lanton")
        },
        2 / 3,
    )
