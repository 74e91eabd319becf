"""CIFAR-10 from the tarball that its authors offer, `cifar-10-python.tar.gz`."""

import hashlib
import pathlib
import pickle
import tarfile

import numpy as np

from experiments.data.images import Images

# As https://www.cs.toronto.edu/~kriz/cifar.html states it.
MD5 = "c58f30108f718f92721af3b95e74349a"
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = ("test_batch",)
_FOLDER = "cifar-10-batches-py"


class _Arrays(pickle.Unpickler):
    """Unpickles arrays and plain containers, and nothing that could run code."""

    def find_class(self, module, name):
        # NumPy 2 moved what old pickles call numpy.core.
        allowed = {
            ("multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,
        }
        found = allowed.get((module.rpartition(".")[2], name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return found


def _latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes in the old protocol.
    del encoding
    return text.encode("latin1")


def load(path: str, md5: str = MD5) -> Images:
    """50,000 images to train on, 10,000 to validate, `(32, 32, 3)`.

    Args:
      path: of the tarball.
      md5: what the file must hash to.

    Raises:
      ValueError: naming `task.path`, if there is no such file or it is another one.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(
            f"task.path: no file {str(file)!r}, allowed CIFAR-10's tarball"
        )
    with file.open("rb") as content:
        given = hashlib.file_digest(content, "md5").hexdigest()
    if given != md5:
        raise ValueError(
            f"task.path: {file} has the md5 checksum {given}, CIFAR-10's is {md5}"
        )
    try:
        with tarfile.open(file) as tar:
            train_images, train_labels = _read(tar, _TRAIN)
            images, labels = _read(tar, _TEST)
    except (tarfile.TarError, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise ValueError(f"task.path: {file} is no CIFAR-10 ({error})") from error
    return Images(
        train_images=train_images,
        train_labels=train_labels,
        validation_images=images,
        validation_labels=labels,
        classes=10,
        digest=given,
    )


def _read(tar: tarfile.TarFile, names: tuple[str, ...]):
    images, labels = [], []
    for name in names:
        with tar.extractfile(f"{_FOLDER}/{name}") as member:
            batch = _Arrays(member, encoding="bytes").load()
        images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(batch[b"labels"], np.int32))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)
