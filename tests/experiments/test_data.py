import hashlib

import numpy as np
import pytest

from experiments import config as configs
from experiments import data
from experiments.data import stdlib, windows
from experiments.data.order import Process


def corpus(*parts):
    return windows.Corpus(train=parts, validation=parts, vocab_size=1000, digest="")


def test_the_standard_library_is_split_by_file():
    library = stdlib.load()
    train, validation = set(library.train_files), set(library.validation_files)
    assert not train & validation
    assert "argparse.py" in train | validation
    for name in train | validation:
        assert not {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(
            name.split("/")[:-1]
        )
    (tokens,), (held_out,) = library.train, library.validation
    assert 5_000_000 < len(tokens) < 40_000_000
    assert 0.02 < len(held_out) / len(tokens) < 0.15
    assert tokens.dtype == np.uint8
    assert stdlib.load() is library


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
    first = corpus(tokens).train_batches(17, 4, seed=3)
    seen = [next(first) for _ in range(5)]
    state = first.get_state()
    following = [next(first) for _ in range(3)]
    second = corpus(tokens).train_batches(17, 4, seed=3)
    np.testing.assert_array_equal([next(second) for _ in range(5)], seen)
    third = corpus(tokens).train_batches(17, 4, seed=3)
    third.set_state(state)
    np.testing.assert_array_equal([next(third) for _ in range(3)], following)
    # An iterator that has run on goes back too, past what it has read ahead.
    first.set_state(state)
    np.testing.assert_array_equal([next(first) for _ in range(3)], following)
    batch = seen[0]
    np.testing.assert_array_equal(batch, batch[:, :1] + np.arange(17))
    other = next(corpus(tokens).train_batches(17, 4, seed=4))
    assert (other[:, 0] != batch[:, 0]).any()


def test_batches_of_one_come_too():
    batches = corpus(np.arange(50)).train_batches(9, 1, seed=0)
    assert next(batches).shape == (1, 9)


def test_an_epoch_has_every_window_of_every_part_once():
    parts = np.arange(20), np.arange(50, 55), np.arange(100, 128)
    batches = corpus(*parts).train_batches(9, 8, seed=0)
    epoch = np.concatenate([next(batches) for _ in range(4)])
    starts = [*range(12), *range(100, 120)]  # the second part is too short
    np.testing.assert_array_equal(np.sort(epoch[:, 0]), starts)
    np.testing.assert_array_equal(epoch, epoch[:, :1] + np.arange(9))
    second = np.concatenate([next(batches) for _ in range(4)])
    np.testing.assert_array_equal(np.sort(second[:, 0]), starts)
    assert (second != epoch).any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_every_batch(count):
    tokens = corpus(np.arange(40))
    whole = tokens.train_batches(9, 8, seed=1, process=Process(0, 1))
    shares = [
        tokens.train_batches(9, 8, seed=1, process=Process(i, count))
        for i in range(count)
    ]
    for _ in range(6):  # into the second epoch
        rows = [next(share) for share in shares]
        assert {len(part) for part in rows} == {8 // count}
        np.testing.assert_array_equal(np.concatenate(rows), next(whole))
    # A run goes on with another number of processes.
    one = tokens.train_batches(9, 8, seed=1, process=Process(0, 1))
    one.set_state(shares[1].get_state())
    np.testing.assert_array_equal(next(one), next(whole))
    with pytest.raises(ValueError, match=r"train\.batch_size: given 8.* 3 processes"):
        tokens.train_batches(9, 8, seed=1, process=Process(0, 3))


def test_too_many_windows_are_thinned_evenly():
    tokens = np.arange(100)
    thin = windows.Windows([tokens[:50], tokens[50:]], 3, most=20)
    assert len(thin) == 20
    starts = thin.gather(np.arange(20))[:, 0]
    places = np.r_[0:48, 50:98]  # none crosses from one part into the other
    np.testing.assert_array_equal(starts, places[::5])


def test_validation_windows_are_spread_over_all_tokens():
    tokens = corpus(np.arange(1000))
    first, second = tokens.eval_batches(11, 3, 6)
    assert first.shape == second.shape == (3, 11)
    assert first[0, 0] == 0
    assert second[-1, -1] == 999
    with pytest.raises(ValueError, match=r"task\.context: 1000 leaves no window"):
        tokens.eval_batches(1001, 3, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "digits"}, r"task\.data: given 'digits', allowed stdlib, .*shards"),
        ({"path": "here"}, r"task\.path: given 'here', task\.data=stdlib has none"),
        (
            {"text_field": "x"},
            r"task\.text_field: given 'x', task\.data=stdlib has none",
        ),
        ({"data": "shards"}, r"task\.path: missing, task\.data=shards needs it"),
        (
            {"data": "shards", "path": "here", "tokenizer": "t"},
            r"task\.tokenizer: given 't', task\.data=shards has none",
        ),
        ({"data": "shards", "path": "nowhere"}, r"task\.path: no folder 'nowhere'"),
        (
            {"data": "stream", "path": "x", "tokenizer": "t.json"},
            r"task\.tokenizer: no file 't\.json'",
        ),
    ],
)
def test_a_source_names_the_field_that_is_wrong(fields, message):
    config = configs.base()
    for name, value in fields.items():
        config.task[name] = value
    with pytest.raises(ValueError, match=message):
        data.load(config.task, "language_model")
