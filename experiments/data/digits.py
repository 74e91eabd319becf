"""scikit-learn's 1,797 handwritten digits of 8 by 8 pixels: no download."""

import hashlib

import numpy as np

from experiments.data.images import Images

_VALIDATION = 297
_SPLIT_SEED = 0


def load() -> Images:
    """1,500 digits to train on and 297 to validate, split at random, always alike."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    images = digits.images[order, :, :, None].astype(np.uint8)
    labels = digits.target[order].astype(np.int32)
    return Images(
        train_images=images[_VALIDATION:],
        train_labels=labels[_VALIDATION:],
        validation_images=images[:_VALIDATION],
        validation_labels=labels[:_VALIDATION],
        classes=10,
        digest=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
    )
