"""scikit-learn's 1,797 handwritten digits of 8 by 8 pixels: no download."""

import hashlib
import importlib.util
import pathlib

import numpy as np

from experiments.data.images import Images

_VALIDATION = 297
_SPLIT_SEED = 0


def load() -> Images:
    """1,500 digits to train on and 297 to validate, split at random, always alike."""
    images, labels = _table()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    images, labels = images[order], labels[order]
    return Images(
        train_images=images[_VALIDATION:],
        train_labels=labels[_VALIDATION:],
        validation_images=images[:_VALIDATION],
        validation_labels=labels[:_VALIDATION],
        classes=10,
        digest=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
    )


def _table() -> tuple[np.ndarray, np.ndarray]:
    """All digits, `[n, 8, 8, 1]`, and what they show, in the file's order."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the digits are scikit-learn's: install scikit-learn")
    # The file itself, since importing scikit-learn takes longer than a short training.
    path = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)
