"""Shards that changed, tokens that are none, text that is no text, a stop half-way."""

import fcntl
import gzip
import json
import os
import resource
import signal

import numpy as np
import pytest

from experiments import prepare
from experiments.data import digests, shards, tokenizer
from experiments.data.shards import Piece
from experiments.errors import UserError

TEXTS = [f"def f{i}(x):\n    return x + {i}  # näïve ∀\n" for i in range(60)]
PIECES = [Piece(text, i % 10 == 0) for i, text in enumerate(TEXTS)]


def written(folder):
    shards.write(folder, PIECES, tokenizer.Bytes(), source="test", shard_tokens=900)
    return folder


def change(path, place, value):
    """Another token at a place, as late as meta.json or later."""
    tokens = np.fromfile(path, "<u2")
    tokens[place] = value
    tokens.tofile(path)


@pytest.mark.parametrize("small", [0, 2**26])
def test_a_shard_that_changed_is_named(tmp_path, monkeypatch, small):
    monkeypatch.setattr(digests, "WHOLE", small)
    monkeypatch.setattr(digests, "BLOCK_BYTES", 32)
    folder = written(tmp_path / "s")
    digest = shards.load(str(folder)).digest
    name = folder / "train_00001.bin"
    before = os.stat(name).st_mtime_ns
    change(name, 401, 7)
    os.utime(name, ns=(before + 10**9, before + 10**9))
    with pytest.raises(ValueError, match=r"train_00001\.bin was changed"):
        shards.load(str(folder))
    # Without meta.json it is another corpus.
    (folder / "meta.json").unlink()
    changed = shards.load(str(folder), 256).digest
    assert changed != digest
    change(name, 402, 8)
    os.utime(name, ns=(before + 2 * 10**9, before + 2 * 10**9))
    assert shards.load(str(folder), 256).digest != changed


def test_a_token_beyond_the_vocabulary_is_found_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 0)
    monkeypatch.setattr(digests, "BLOCK_BYTES", 32)
    monkeypatch.setattr(digests, "BLOCKS", 4)
    tokens = (np.arange(4000) % 90).astype(np.uint16)
    tokens[1234] = 60_000
    tokens.tofile(tmp_path / "train.bin")
    tokens[:900].tofile(tmp_path / "val.bin")
    corpus = shards.load(str(tmp_path), 90)
    assert len(corpus.eval_batches(33, 32, 32)) == 1
    batches = corpus.train_batches(33, 32, seed=0)
    expected = r"90 tokens, but .*train\.bin holds 60000"
    with pytest.raises(UserError, match=expected):
        [next(batches) for _ in range(125)]
    tokens[500] = 90
    tokens[:900].tofile(tmp_path / "val.bin")
    corpus = shards.load(str(tmp_path), 90)
    with pytest.raises(UserError, match=r"val\.bin holds 90"):
        corpus.eval_batches(33, 32, 864)
    # Few tokens are looked at whole before anything is read.
    monkeypatch.setattr(digests, "WHOLE", 2**26)
    with pytest.raises(ValueError, match=r"train\.bin holds 60000"):
        shards.load(str(tmp_path), 90)


def test_texts_are_encoded_whole_whatever_the_file_says(tmp_path):
    text = " ".join(TEXTS)
    plain = tokenizer.train(TEXTS, 300, "test")
    expected = plain.encode([text])[0]
    plain.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    for part in (
        {"truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0}},
        {"padding": {"strategy": {"Fixed": 64}, "pad_id": 0, "pad_token": "!"}},
    ):
        kind = next(iter(part))
        usual = {"direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
        whole = {kind: part[kind] | (usual if kind == "padding" else {})}
        whole[kind].setdefault("direction", "Right")
        path.write_text(json.dumps(content | whole))
        loaded = tokenizer.load(str(path))
        np.testing.assert_array_equal(loaded.encode([text, "a"])[0], expected)
        assert len(loaded.encode(["a", text])[0]) == 1
        assert loaded.digest == plain.digest


@pytest.mark.parametrize("special", [True, False])
def test_the_name_of_the_end_in_a_text_ends_no_document(tmp_path, special):
    encoder = tokenizer.train(TEXTS, 300, "test")
    encoder.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][0]["special"] = special
    path.write_text(json.dumps(content))
    encoder = tokenizer.load(str(path))
    end = "<|endoftext|>"
    texts = [f"a{end}b", end, end * 3, f"{end}x", f"x{end}", "plain", ""]
    for text, tokens in zip(texts, encoder.encode(texts), strict=True):
        assert encoder.end not in tokens
        assert encoder._tokenizer.decode(tokens.tolist()) == text


def test_a_nul_in_a_text_ends_no_document():
    (tokens,) = tokenizer.Bytes().encode(["a\0b"])
    assert bytes(tokens.astype(np.uint8)).decode() == "a\ufffdb"


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(TEXTS)
    wrong = {
        gzip.compress(text.encode()): "gzip file",
        text.encode("utf-16"): "no UTF-8 text",
        np.random.default_rng(0).bytes(5000): "no UTF-8 text",
        b"\0" * 100: "no UTF-8 text",
    }
    for content, part in wrong.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"--files: .*a\.txt.*{part}"):
            list(prepare._file_pieces([str(path)], 10))
    for content in (text.encode(), b"", b"caf\xe9 and more text", b"a nul \0 in text"):
        path.write_bytes(content)
        found = "".join(piece.text for piece in prepare._file_pieces([str(path)], 10))
        assert found == content.decode(errors="replace")


def test_a_signal_leaves_no_folder(tmp_path):
    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.getsignal(number)

        def stopped(number=number):
            yield from PIECES
            os.kill(os.getpid(), number)
            yield PIECES[0]

        with pytest.raises(SystemExit) as caught:
            shards.write(tmp_path / "s", stopped(), tokenizer.Bytes(), source="test")
        assert caught.value.code == 128 + number
        assert not list(tmp_path.iterdir())
        assert signal.getsignal(number) is before


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in ("s.1.new", "s.2.new", "other.1.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train_00000.bin").write_bytes(b"ab")
    at_work = os.open(tmp_path / "s.2.new", os.O_RDONLY)
    fcntl.flock(at_work, fcntl.LOCK_EX)
    written(tmp_path / "s")
    os.close(at_work)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["other.1.new", "s", "s.2.new"]


def test_a_full_disk_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
        with pytest.raises(OSError, match=r"train_00000\.bin"):
            written(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whole", [0, 2**20])
def test_a_digest_sees_names_contents_and_times(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(digests, "WHOLE", whole)
    files = {name: tmp_path / name for name in "abc"}
    for name, size in zip("abc", (0, 10, 300_000), strict=True):
        files[name].write_bytes(bytes(size))
        os.utime(files[name], ns=(10**18, 10**18))
    first = digests.digest(files)
    assert digests.digest(dict(reversed(files.items()))) == first
    seen = {first, digests.digest({**files, "d": files["a"]})}
    files["c"].write_bytes(bytes(150_000) + b"x" + bytes(149_999))
    seen.add(digests.digest(files))
    files["a"].write_bytes(b"x")
    seen.add(digests.digest(files))
    assert len(seen) == 4


def test_a_column_that_holds_no_text_is_named():
    assert prepare.stream.text_of({"a": "x"}, "a", "--f") == "x"
    for value in (None, 3, ["x"], b"x"):
        with pytest.raises(UserError, match="--f: given 'a', which holds a"):
            prepare.stream.text_of({"a": value}, "a", "--f")
