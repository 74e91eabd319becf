import hashlib

import numpy as np
import pytest

from experiments.data import stdlib, windows


def test_the_standard_library_is_split_by_file():
    corpus = stdlib.load()
    train, validation = set(corpus.train_files), set(corpus.validation_files)
    assert not train & validation
    assert "argparse.py" in train | validation
    for name in train | validation:
        assert not {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(
            name.split("/")[:-1]
        )
    assert 5_000_000 < len(corpus.train) < 40_000_000
    assert 0.02 < len(corpus.validation) / len(corpus.train) < 0.15
    assert corpus.train.dtype == np.uint8
    assert stdlib.load() is corpus


def test_the_digest_names_the_contents(tmp_path):
    for i in range(40):
        (tmp_path / f"m{i:02}.py").write_text(f"x = {i}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text("left out")
    first = stdlib.load(str(tmp_path))
    expected = hashlib.sha256()
    for i in range(40):
        text = f"x = {i}\n"
        expected.update(f"m{i:02}.py\0{len(text)}\0{text}".encode())
    assert first.digest == expected.hexdigest()
    assert len(first.train_files) + len(first.validation_files) == 40
    # A file keeps its side when others come.
    (tmp_path / "new.py").write_text("y = 1\n")
    stdlib.load.cache_clear()
    second = stdlib.load(str(tmp_path))
    assert second.digest != first.digest
    assert set(first.train_files) <= set(second.train_files)
    with pytest.raises(ValueError, match=r"task\.data"):
        stdlib.load(str(tmp_path / "tests"))


def test_batches_are_windows_and_resume():
    tokens = np.arange(1000, dtype=np.uint16)
    first = windows.random_batches(tokens, 17, 4, seed=3)
    seen = [next(first) for _ in range(5)]
    state = first.get_state()
    following = [next(first) for _ in range(3)]
    second = windows.random_batches(tokens, 17, 4, seed=3)
    np.testing.assert_array_equal([next(second) for _ in range(5)], seen)
    third = windows.random_batches(tokens, 17, 4, seed=3)
    third.set_state(state)
    np.testing.assert_array_equal([next(third) for _ in range(3)], following)
    batch = seen[0]
    np.testing.assert_array_equal(batch, batch[:, :1] + np.arange(17))
    other = next(windows.random_batches(tokens, 17, 4, seed=4))
    assert (other[:, 0] != batch[:, 0]).any()


def test_an_epoch_has_every_window_once():
    tokens = np.arange(40)
    batches = windows.random_batches(tokens, 9, 8, seed=0)
    starts = np.concatenate([next(batches)[:, 0] for _ in range(4)])
    np.testing.assert_array_equal(np.sort(starts), np.arange(32))


def test_validation_windows_are_spread_over_all_tokens():
    tokens = np.arange(1000)
    first, second = windows.even_batches(tokens, 11, 3, 6)
    assert first.shape == second.shape == (3, 11)
    assert first[0, 0] == 0
    assert second[-1, -1] == 999
    with pytest.raises(ValueError, match=r"task\.context"):
        windows.even_batches(tokens, 1001, 3, 6)
