import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from sklearn import datasets

from experiments.data import cifar10, digits
from experiments.data.order import Process


def tarball(path, batches):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def batches():
    """Six pickles of the format, four images each: planes of red, green and blue."""
    rng = np.random.default_rng(0)
    made = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        made[name] = {
            b"batch_label": name.encode(),
            b"labels": rng.integers(0, 10, 4).tolist(),
            b"data": rng.integers(0, 256, (4, 3 * 32 * 32)).astype(np.uint8),
            b"filenames": [b"x.png"] * 4,
        }
    return made


def test_cifar10_is_read_from_its_tarball(tmp_path, batches):
    path = tmp_path / "cifar-10-python.tar.gz"
    md5 = tarball(path, {name: pickle.dumps(b, 2) for name, b in batches.items()})
    images = cifar10.load(str(path), md5)
    assert images.train_images.shape == (20, 32, 32, 3)
    assert images.validation_images.shape == (4, 32, 32, 3)
    assert images.train_images.dtype == np.uint8
    third = batches["data_batch_3"]
    np.testing.assert_array_equal(images.train_labels[8:12], third[b"labels"])
    plane = third[b"data"][1].reshape(3, 1024)
    np.testing.assert_array_equal(images.train_images[9, :, :, 2].ravel(), plane[2])
    np.testing.assert_array_equal(
        images.validation_labels, batches["test_batch"][b"labels"]
    )
    mean, deviation = images.statistics()
    flat = images.train_images.reshape(-1, 3)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, flat.std(0), rtol=1e-5)


def test_another_file_is_refused_before_it_is_unpickled(tmp_path, batches):
    path = tmp_path / "cifar-10-python.tar.gz"
    with pytest.raises(ValueError, match=r"task\.path: no file"):
        cifar10.load(str(path))
    pickles = {name: pickle.dumps(b, 2) for name, b in batches.items()}
    tarball(path, pickles)
    with pytest.raises(ValueError, match="c58f30108f718f92721af3b95e74349a"):
        cifar10.load(str(path))
    # Even a file whose checksum is asked for runs no code.
    pickles["test_batch"] = pickle.dumps({b"data": print}, 2)
    with pytest.raises(ValueError, match="is no array"):
        cifar10.load(str(path), tarball(path, pickles))
    del pickles["test_batch"]
    with pytest.raises(ValueError, match="is no CIFAR-10"):
        cifar10.load(str(path), tarball(path, pickles))


def test_digits_are_split_and_ordered_by_the_seed():
    images = digits.load()
    assert images.train_images.shape == (1500, 8, 8, 1)
    assert images.validation_images.shape == (297, 8, 8, 1)
    assert images.train_images.max() == 16
    assert len(np.bincount(images.validation_labels)) == 10
    assert digits.load().digest == images.digest
    (evaluation,) = images.eval_batches()
    assert len(evaluation["label"]) == 297
    batches = images.train_batches(100, seed=0)
    epoch = [next(batches) for _ in range(15)]
    state = batches.get_state()
    labels = np.concatenate([batch["label"] for batch in epoch])
    assert (np.bincount(labels) == np.bincount(images.train_labels)).all()
    half = images.train_batches(100, seed=0, process=Process(1, 2))
    np.testing.assert_array_equal(next(half)["image"], epoch[0]["image"][50:])
    following = next(batches)
    again = images.train_batches(100, seed=0)
    again.set_state(state)
    resumed = next(again)
    for name in ("image", "label"):
        np.testing.assert_array_equal(resumed[name], following[name])


def test_digits_are_those_that_scikit_learn_loads():
    ours = digits.load()
    images = np.concatenate([ours.train_images, ours.validation_images])
    labels = np.concatenate([ours.train_labels, ours.validation_labels])
    theirs = datasets.load_digits()
    shown = {(tuple(x.ravel()), y) for x, y in zip(images, labels, strict=True)}
    assert shown == {
        (tuple(x), y) for x, y in zip(theirs.data, theirs.target, strict=True)
    }
