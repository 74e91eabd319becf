"""Data that changed between two parts of a run: the file that did is named."""

import json
import os

import numpy as np
import pytest

from experiments.config import base
from experiments.data import digests, shards, stream, tokenizer
from experiments.errors import UserError
from experiments.trainer import identity
from experiments.trainer.workdir import Workdir

NAMES = ("train_0.bin", "train_1.bin", "val_0.bin")


def write(file, tokens):
    """With a time that is the file's own, whenever it is written."""
    np.asarray(tokens, "<u2").tofile(file)
    time = sum(tokens) * 10**9
    os.utime(file, ns=(time, time))


@pytest.fixture
def start(tmp_path):
    """Starts the run on the shards of today, as far as its folder's checks."""
    data = tmp_path / "data"
    data.mkdir()
    for i, name in enumerate(NAMES):
        write(data / name, np.arange(200) % 90 + i)

    def opened(corpus=None):
        corpus, config = corpus or shards.load(str(data), 100), base()
        folder = Workdir(str(tmp_path / "run"), config, corpus.digest, corpus.files)
        told = {"config": config.to_dict()}
        told |= identity.of_data(corpus.digest, corpus.files)
        folder.write_json("config.json", told)
        folder.close()
        return told

    opened.data = data
    return opened


def longer(folder):
    write(folder / "train_1.bin", np.arange(900) % 90)


CHANGES = {
    "changed": (
        lambda folder: write(folder / "train_1.bin", np.arange(200) % 80),
        r"a run with the data file train_1\.bin, which has changed since; choose",
    ),
    "longer": (longer, r"the data file train_1\.bin, which has changed since"),
    "gone": (
        lambda folder: (folder / "train_0.bin").unlink(),
        r"a run with the data file train_0\.bin, which is gone; choose",
    ),
    "new": (
        lambda folder: write(folder / "val_1.bin", np.arange(90)),
        r"a run with no data file val_1\.bin, which is new; choose",
    ),
}


# Of 1,200 bytes: more than is read whole, less, and less until one file grows.
@pytest.mark.parametrize("whole", [0, 2**20, 1200])
@pytest.mark.parametrize("change", CHANGES)
def test_the_file_that_changed_is_named(start, monkeypatch, change, whole):
    monkeypatch.setattr(digests, "WHOLE", whole)
    monkeypatch.setattr(digests, "BLOCK_BYTES", 32)
    recorded = start()
    assert set(recorded["data_files"]) == set(NAMES)
    assert start() == recorded
    act, says = CHANGES[change]
    act(start.data)
    with pytest.raises(UserError, match=says) as caught:
        start()
    assert "\n" not in str(caught.value) and caught.value.status == 2
    # A sweep says the same of a point.
    corpus = shards.load(str(start.data), 100)
    before = identity.trained(start.data.parent / "run")
    said = identity.difference(
        before, identity.asked(base(), corpus.digest, corpus.files)
    )
    assert f"a run with {said}; " in str(caught.value)


def test_without_digests_of_files_the_data_are_named(start, monkeypatch):
    path, recorded = start.data.parent / "run" / "config.json", start()
    # A run that is older than the field goes on, and has it then.
    del recorded["data_files"]
    path.write_text(json.dumps(recorded))
    assert "data_files" in start()
    for odd in (None, 3, [], {"train_1.bin": 3}):
        path.write_text(json.dumps(recorded | {"data_files": odd}))
        start()
    # Of too many files no one is named.
    monkeypatch.setattr(digests, "NAMED", 2)
    assert "data_files" not in start()
    longer(start.data)
    with pytest.raises(UserError, match="a run with data_digest='"):
        start()


def test_prepared_shards_are_named_too(start, tmp_path):
    def prepared(folder, last):
        texts = [f"text {i} of many\n" for i in range(99)] + [last]
        pieces = [shards.Piece(text, i < 20) for i, text in enumerate(texts)]
        words = {"source": "test", "shard_tokens": 600}
        shards.write(folder, pieces, tokenizer.Bytes(), **words)
        return shards.load(str(folder))

    first = prepared(tmp_path / "a", "the end")
    second = prepared(tmp_path / "b", "THE END")
    assert len(first.files) > 3
    start(first)
    last = max(name for name in first.files if name.startswith("train"))
    with pytest.raises(UserError, match=f"the data file {last}, which has changed"):
        start(second)
    # Without meta.json the digest is another one, and the files are the same.
    (tmp_path / "a" / "meta.json").unlink()
    with pytest.raises(UserError, match="a run with data_digest='"):
        start(shards.load(str(tmp_path / "a"), 257))


def test_a_folder_of_texts_is_named_by_its_files(start, tmp_path):
    file = tmp_path / "texts" / "train.jsonl"
    file.parent.mkdir()

    def opened(count):
        file.write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(count)))
        return stream.Stream(
            str(file.parent), None, "text", tokenizer.Bytes(), held_out=9
        )

    start(opened(50))
    with pytest.raises(UserError, match=r"the data file train\.jsonl, which has"):
        start(opened(51))
