"""Streams of documents, from local files through the library that reads the hub."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.data import stream, tokenizer
from experiments.data.order import Process
from tests.experiments.conftest import small_arguments

ALONE = Process(0, 1)
DOCUMENTS = [f"document {i}: " + "word " * (i % 7) + f"end {i}" for i in range(400)]


@pytest.fixture(scope="module", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def write(folder, kind, split, documents):
    folder.mkdir(exist_ok=True)
    file = folder / f"{split}.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    elif kind == "txt":
        file.write_text("\n".join(documents) + "\n")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": documents}), file, row_group_size=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    write(folder, "jsonl", "train", DOCUMENTS)
    write(folder, "jsonl", "validation", DOCUMENTS[:50])
    return folder


def open_stream(folder, **changes):
    arguments = {"subset": None, "text_field": "text", "tokenizer": tokenizer.Bytes()}
    return stream.Stream(str(folder), **(arguments | changes))


def unpacked(windows):
    """The text that consecutive windows hold: they share a token."""
    tokens = np.concatenate([windows[0][:1], *(window[1:] for window in windows)])
    return bytes(tokens.astype(np.uint8)).decode()


def packed(opened, count, process=ALONE, length=33):
    windows = iter(
        stream._Packed(opened._train, "text", opened._tokenizer, length, process)
    )
    return [next(windows) for _ in range(count)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_windows_are_the_documents_one_after_another(tmp_path, kind):
    write(tmp_path, kind, "train", DOCUMENTS)
    write(tmp_path, kind, "validation", DOCUMENTS[:50])
    opened = open_stream(tmp_path)
    text = "".join(f"{document}\0" for document in DOCUMENTS)
    count = 2 * len(text) // 32
    # Into the third epoch.
    assert unpacked(packed(opened, count)) == (3 * text)[: count * 32 + 1]
    (batch,) = opened.eval_batches(33, 8, 8)
    assert unpacked(list(batch)) == text[: 8 * 32 + 1]
    with pytest.raises(ValueError, match=r"task\.eval_windows: given 640"):
        opened.eval_batches(33, 8, 640)


def test_a_stream_resumes_at_the_very_next_batch(folder):
    first = open_stream(folder).train_batches(17, 8, seed=2)
    other = open_stream(folder).train_batches(17, 8, seed=3)
    states, seen = [], []
    for _ in range(250):  # an epoch has about 103 batches
        states.append(json.loads(json.dumps(first.get_state())))
        seen.append(next(first))
    assert (next(other) != seen[0]).any()
    assert seen[0].shape == (8, 17)
    again = open_stream(folder)
    for place in (0, 1, 63, 64, 65, 150, 249):
        resumed = again.train_batches(17, 8, seed=2)
        resumed.set_state(states[place])
        for batch in seen[place : place + 3]:
            np.testing.assert_array_equal(next(resumed), batch)
    # Backwards too, on an iterator that has run ahead.
    first.set_state(states[5])
    np.testing.assert_array_equal(next(first), seen[5])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_read_other_documents(folder, count):
    opened = open_stream(folder)
    seen = []
    for i in range(count):
        share = [d for j, d in enumerate(DOCUMENTS) if j % count == i]
        size = sum(len(d) + 1 for d in share)
        windows = packed(opened, size // 32, Process(i, count))
        text = unpacked(windows)
        assert text == "".join(f"{d}\0" for d in share)[: len(text)]
        seen += text.split("\0")[:-1]
    assert len(seen) == len(set(seen))
    assert len(DOCUMENTS) - count * 4 <= len(seen)
    batches = opened.train_batches(17, 4 * count, 0, Process(0, count))
    assert next(batches).shape == (4, 17)
    with pytest.raises(ValueError, match=f"read by {count} processes, not 1"):
        opened.train_batches(17, 4, 0, Process(0, 1)).set_state(batches.get_state())
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        opened.train_batches(17, 4, 0, Process(0, 3))


def test_a_data_set_without_validation_gives_its_first_documents(tmp_path):
    write(tmp_path, "jsonl", "train", DOCUMENTS)
    opened = open_stream(tmp_path, held_out=30)
    (batch,) = opened.eval_batches(33, 4, 4)
    assert unpacked(list(batch)).startswith(DOCUMENTS[0])
    assert unpacked(packed(opened, 10)).startswith(DOCUMENTS[30])
    with pytest.raises(ValueError, match=r"task\.path: .* too few documents"):
        open_stream(tmp_path)


def test_the_digest_names_what_is_read(folder, tmp_path):
    assert open_stream(folder).digest == open_stream(folder).digest
    write(tmp_path, "jsonl", "train", DOCUMENTS)
    write(tmp_path, "jsonl", "validation", DOCUMENTS[:50])
    assert open_stream(tmp_path).digest != open_stream(folder).digest


def test_what_does_not_load_is_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"task\.text_field: given 'x', .* has text"):
        open_stream(folder, text_field="x")
    with pytest.raises(ValueError, match=r"task\.path: .*nowhere.* does not load") as e:
        open_stream(tmp_path / "nowhere")
    assert "\n" not in str(e.value)
    write(tmp_path, "jsonl", "test", DOCUMENTS)
    with pytest.raises(ValueError, match=r"has no split train, but \['test'\]"):
        open_stream(tmp_path)


def test_a_run_on_a_stream_ends_in_order(folder, tmp_path):
    words = [
        *(sys.executable, "-m", "experiments.train", "--config=configs/stdlib_lm.py"),
        f"--workdir={tmp_path}/run",
        *small_arguments(train__steps=3, task__data="stream", task__path=folder),
    ]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    for word in ("Exception", "FATAL", "Traceback"):
        assert word not in done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 3
