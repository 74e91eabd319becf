"""Token shards: written by `prepare`, by nanoGPT, damaged; tokenizers; sources."""

import hashlib
import json

import numpy as np
import pytest

from experiments import prepare
from experiments.data import installed, shards, tokenizer
from experiments.data.shards import Piece
from experiments.errors import UserError

TEXTS = [f"def f{i}(x):\n    return x + {i}  # näïve ∀\n" for i in range(60)]


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train(TEXTS, 300, "--vocab_size")


def decode(encoder, tokens):
    if isinstance(encoder, tokenizer.Bytes):
        return bytes(tokens.astype(np.uint8)).decode()
    return encoder._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_shards_hold_the_text_and_its_ends(tmp_path, bpe, kind):
    encoder = {"bytes": tokenizer.Bytes(), "bpe": bpe}[kind]
    mark = {"bytes": "\0", "bpe": "<|endoftext|>"}[kind]
    pieces = [
        Piece(text, held_out=i % 10 == 0, last=i % 3 != 1)
        for i, text in enumerate(TEXTS)
    ]
    folder = tmp_path / "shards"
    meta = shards.write(folder, pieces, encoder, source="test", shard_tokens=300)
    corpus = shards.load(str(folder))
    assert not list(tmp_path.glob("*.new"))
    assert corpus.vocab_size == encoder.vocab_size == meta["vocab_size"]
    assert len(corpus.train) > 2
    for parts, side in ((corpus.train, False), (corpus.validation, True)):
        expected = "".join(
            piece.text + (mark if piece.last else "")
            for piece in pieces
            if piece.held_out == side
        )
        assert decode(encoder, np.concatenate(parts)) == expected
        assert all(isinstance(part, np.memmap) for part in parts)
        assert all(len(part) >= 300 for part in parts[:-1])
    files = sorted(folder.glob("*.bin"))
    assert files[0].name == "train_00000.bin"
    lines = [f"{f.name} {hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in files]
    assert corpus.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (folder / "tokenizer.json").exists() == (kind == "bpe")
    if kind == "bpe":
        again = tokenizer.load(str(folder / "tokenizer.json"))
        assert again.vocab_size == bpe.vocab_size == 300
        assert again.digest == bpe.digest
        np.testing.assert_array_equal(again.encode(TEXTS)[7], bpe.encode(TEXTS)[7])


def test_a_shared_batch_of_shards_resumes(tmp_path):
    folder = tmp_path / "shards"
    pieces = [Piece(text, i % 10 == 0) for i, text in enumerate(TEXTS)]
    shards.write(folder, pieces, tokenizer.Bytes(), source="test", shard_tokens=500)
    first = shards.load(str(folder)).train_batches(33, 8, seed=5)
    [next(first) for _ in range(20)]
    state = json.loads(json.dumps(first.get_state()))
    again = shards.load(str(folder)).train_batches(33, 8, seed=5)
    again.set_state(state)
    for _ in range(5):
        batch = next(first)
        assert batch.dtype == np.uint16
        np.testing.assert_array_equal(next(again), batch)


def test_a_split_without_text_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"test: too few pieces of text to fill val\*"):
        shards.write(
            tmp_path / "shards", [Piece("a", False)], tokenizer.Bytes(), source="test"
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def nanogpt(tmp_path):
    """A folder as nanoGPT's prepare.py leaves it."""
    for name, size in (("train.bin", 400), ("val.bin", 50)):
        (np.arange(size) % 90).astype(np.uint16).tofile(tmp_path / name)
    return tmp_path


def test_nanogpts_folder_needs_the_size_of_the_vocabulary(nanogpt):
    with pytest.raises(ValueError, match=r"task\.vocab_size: missing.*no meta\.json"):
        shards.load(str(nanogpt))
    corpus = shards.load(str(nanogpt), 90)
    np.testing.assert_array_equal(corpus.train[0], np.arange(400) % 90)
    assert corpus.vocab_size == 90
    before = corpus.digest
    np.arange(50, dtype=np.uint16)[::-1].tofile(nanogpt / "val.bin")
    assert shards.load(str(nanogpt), 90).digest != before
    with pytest.raises(ValueError, match=r"89 tokens, but .*train\.bin holds 89"):
        shards.load(str(nanogpt), 89)
    shards.load(str(nanogpt), 65_536)
    with pytest.raises(ValueError, match="65,537 tokens, allowed at most 65,536"):
        shards.load(str(nanogpt), 65_537)


def test_damage_is_named(nanogpt):
    meta = {
        "vocab_size": 90,
        "digest": "d",
        "shards": {"train.bin": {"tokens": 400}, "val.bin": {"tokens": 50}},
    }
    file = nanogpt / "meta.json"
    file.write_text(json.dumps(meta))
    assert shards.load(str(nanogpt)).digest == "d"
    assert shards.load(str(nanogpt), 128).vocab_size == 128
    with pytest.raises(ValueError, match=r"task\.vocab_size: given 80, allowed 90"):
        shards.load(str(nanogpt), 80)
    meta["vocab_size"] = 70_000
    file.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json: 70,000 tokens, allowed at most"):
        shards.load(str(nanogpt))
    (nanogpt / "train_2.bin").write_bytes(b"abcd")
    with pytest.raises(ValueError, match=r"train_2\.bin has 2 tokens, .* says 0"):
        shards.load(str(nanogpt))
    (nanogpt / "train_2.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"train_2\.bin of 3 bytes is no uint16"):
        shards.load(str(nanogpt))
    (nanogpt / "train_2.bin").unlink()
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        shards.load(str(nanogpt))
    (nanogpt / "val.bin").unlink()
    with pytest.raises(ValueError, match=r"has no val\*\.bin"):
        shards.load(str(nanogpt))


def test_a_tokenizer_must_fit(tmp_path):
    import tokenizers

    def saved(vocab):
        model = tokenizers.models.WordLevel(vocab, unk_token="a")
        tokenizers.Tokenizer(model).save(str(tmp_path / "t.json"))
        return str(tmp_path / "t.json")

    large = {"a": 0, "</s>": 1} | {f"w{i}": i for i in range(2, 70_000)}
    with pytest.raises(ValueError, match=r"t\.json: 70,000 tokens, allowed at most"):
        tokenizer.load(saved(large))
    with pytest.raises(ValueError, match=r"has none of the tokens <\|endoftext\|>"):
        tokenizer.load(saved({"a": 0}))
    assert tokenizer.load(saved({"a": 0, "</s>": 7})).vocab_size == 8
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(ValueError, match=r"--tokenizer: .* is no tokenizer\.json"):
        tokenizer.load(str(tmp_path / "t.json"), "--tokenizer")
    with pytest.raises(ValueError, match="given 256, allowed 257"):
        tokenizer.train(TEXTS, 256, "--vocab_size")


def test_prepare_trains_a_vocabulary_on_files(tmp_path, given, capsys):
    for name in "ab":
        text = "".join(f"{name} line {i}\n" for i in range(20_000))
        (tmp_path / f"{name}.txt").write_text(text)
    folder = tmp_path / "out"
    words = {"output": folder, "files": f"{tmp_path}/*.txt", "vocab_size": 280}
    given(prepare._FLAGS, **words, validation_every=3, shard_tokens=100_000)
    assert prepare.main([], []) == 0
    assert "280 tokens in the vocabulary" in capsys.readouterr().out
    corpus = shards.load(str(folder))
    encoder = tokenizer.load(str(folder / "tokenizer.json"))
    text = decode(encoder, np.concatenate([*corpus.train, *corpus.validation]))
    lines = text.replace("<|endoftext|>", "").splitlines()
    assert len(lines) == 40_000
    assert set(lines) == {f"{name} line {i}" for name in "ab" for i in range(20_000)}
    assert text.count("<|endoftext|>") == 2
    assert json.loads((folder / "meta.json").read_text())["source"].endswith("*.txt")
    # Nothing is overwritten, and the mistake is one line.
    with pytest.raises(UserError) as caught:
        prepare.main([], [])
    assert str(caught.value) == f"--output: {folder} exists already"


def test_prepare_reads_a_data_set_with_a_given_tokenizer(
    tmp_path, bpe, given, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    for split, some in (("train", TEXTS[:50]), ("validation", TEXTS[50:])):
        lines = [json.dumps({"body": text}) + "\n" for text in some]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(lines))
    bpe.save(tmp_path)
    words = {"output": tmp_path / "out", "dataset": tmp_path / "data"}
    words |= {"tokenizer": tmp_path / "tokenizer.json"}
    given(prepare._FLAGS, **words, validation_split="validation")
    with pytest.raises(UserError) as caught:
        prepare.main([], [])
    assert str(caught.value) == "--text_field: given 'text', allowed body"
    assert not (tmp_path / "out").exists()
    given(prepare._FLAGS, text_field="body", limit=30)
    assert prepare.main([], []) == 0
    corpus = shards.load(str(tmp_path / "out"))
    expected = "".join(f"{text}<|endoftext|>" for text in TEXTS[:30])
    assert decode(bpe, np.concatenate(corpus.train)) == expected
    expected = "".join(f"{text}<|endoftext|>" for text in TEXTS[50:])
    assert decode(bpe, np.concatenate(corpus.validation)) == expected


def source_tree(root, names):
    for name, text in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return root


def test_installed_sources_count_once_and_keep_their_side(tmp_path, monkeypatch):
    shared = {f"m{i:02}.py": f"x = {i}\n".encode() for i in range(40)}
    one = source_tree(tmp_path / "one", shared)
    two = source_tree(
        tmp_path / "two",
        {f"lib/site-packages/{name}": text for name, text in shared.items()}
        | {"dist-packages/p/a.py": b"caf\xe9 = 1\n", "nul.py": b"\0", "empty.py": b""},
    )
    found = list(installed.sources([one, two]))
    assert found == [
        *((name, text.decode()) for name, text in shared.items()),
        ("p/a.py", "caf\ufffd = 1\n"),
    ]
    corpus = installed.load(str(tmp_path / "cache"), folders=[two, one])
    text = {
        side: decode(tokenizer.Bytes(), np.concatenate(parts)).split("\0")[:-1]
        for side, parts in (("train", corpus.train), ("val", corpus.validation))
    }
    assert sorted(text["train"] + text["val"]) == sorted(
        content for _, content in found
    )
    # The cache stays as it is; a default one is below XDG_CACHE_HOME.
    assert installed.load(str(tmp_path / "cache"), folders=[]).digest == corpus.digest
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    bpe = installed.load(vocab_size=260, folders=[one])
    assert bpe.vocab_size <= 260
    assert (tmp_path / "xdg" / "optlab" / "installed_bpe_260" / "meta.json").exists()
    with pytest.raises(ValueError, match=r"task\.vocab_size: given 257, but"):
        installed.load(str(tmp_path / "xdg" / "optlab" / "installed_bpe_260"), 257)
    with pytest.raises(ValueError, match="too few pieces of text to fill train"):
        installed.load(str(tmp_path / "none"), folders=[])
    assert not (tmp_path / "none").exists()
