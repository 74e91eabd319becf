"""The reader of `metrics.jsonl`: what a damaged line costs, and what is read at all."""

import io
import json
import math
import pathlib
import random
import shutil

import pytest

from experiments import records

BAD = {
    "garbage": b"\x8f\x1c garbage",
    "zeros": b"\0" * 300,
    "blank": b"",
    "spaces": b"   ",
    "no UTF-8": b'{"step": 5, "loss": 1.0, "\xff": 2}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"5",
    "no step": b'{"loss": 1.0}',
    "a step of text": b'{"step": "5", "loss": 1.0}',
    "a step between": b'{"step": 5.5, "loss": 1.0}',
    "a step of true": b'{"step": true, "loss": 1.0}',
    "a negative step": b'{"step": -5, "loss": 1.0}',
    "half": b'{"step": 5, "lo',
    "half and another": b'{"step": 5, "lo{"step": 6, "loss": 1.0}',
    "two at once": b'{"step": 5, "loss": 1.0}{"step": 6, "loss": 1.0}',
    "a loss of text": b'{"step": 5, "loss": "1.0"}',
    "losses": b'{"step": 5, "val_loss": {"a": 1.0}}',
    "a list of numbers": b'{"step": 5, "loss": [1.0]}',
    "too many digits": b'{"step": 5, "val_loss": 1' + b"0" * 400 + b"}",
    "far too many digits": b'{"step": 5, "val_loss": 1' + b"0" * 9000 + b"}",
    "too deep": b"[" * 100_000,
    "no number": b'{"step": 5, "loss": 1..5}',
    "a carriage return": b'{"step": 5,\r"loss": "\r"}',
}


def record(step, every=10):
    """As a run writes it, of any size of numbers."""
    digits = random.Random(step)
    found = {"step": step, "loss": digits.random() * 10 ** digits.randint(-9, 3)}
    found |= {"learning_rate": {"learning_rate": digits.random()}, "seconds": step / 4}
    if step % every == 0:
        value = digits.random() * 10 ** digits.randint(-9, 3)
        found["val_loss"] = None if step % (5 * every) == 0 else value
    return found


def write(path, found):
    path.write_text("".join(json.dumps(x) + "\n" for x in found))
    return path


@pytest.mark.parametrize("where", ["first", "middle", "last", "everywhere"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_line_costs_that_line(tmp_path, bad, where):
    lines = [json.dumps(record(step, 2)).encode() for step in range(1, 8)]
    places = {"first": [0], "middle": [4], "last": [7], "everywhere": [7, 4, 0]}[where]
    for place in places:
        lines.insert(place, bad)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    numbers = [i for i, line in enumerate(lines, 1) if line == bad]
    wanted = [record(step, 2) for step in range(1, 8)]
    reader = records.Reader(path)
    assert list(reader.added()) == wanted
    assert reader.bad == numbers
    assert list(records.read(path)) == wanted
    assert records.last(path) == wanted[-1]
    for step in (5, 7):
        part = records.up_to(path, step)
        assert part.bad == numbers
        kept = b"".join(path.read_bytes()[a:b] for a, b in part.spans)
        assert [json.loads(x) for x in kept.splitlines()] == wanted[:step]
        assert part.last == wanted[step - 1]
        assert (part.evaluated, part.val_loss) == (
            step // 2 * 2,
            wanted[step // 2 * 2 - 1]["val_loss"],
        )


def test_no_file_and_an_empty_one_have_no_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        assert list(records.read(path)) == [] and records.last(path) == {}
        assert records.up_to(path, 9)[:3] == ([], [], {})
        path.write_text("")


@pytest.fixture
def counted(monkeypatch):
    """How many bytes were read and how many lines parsed."""
    counts = {"bytes": 0, "lines": 0}

    class Counting(io.FileIO):
        def readinto(self, buffer):
            number = super().readinto(buffer)
            counts["bytes"] += number
            return number

        def readall(self):
            found = super().readall()
            counts["bytes"] += len(found)
            return found

    def parse(line, real=records.parse):
        counts["lines"] += 1
        return real(line)

    def opened(path, mode="r", *words, real=pathlib.Path.open, **options):
        if mode == "rb":
            return io.BufferedReader(Counting(path))
        return real(path, mode, *words, **options)

    monkeypatch.setattr(pathlib.Path, "open", opened)
    monkeypatch.setattr(records, "parse", parse)
    return counts


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A run of 40,000 records, evaluated every 10 steps."""
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    return write(path, map(record, range(1, 40_001)))


@pytest.mark.parametrize("step", [40_000, 39_987, 25_000, 1, 0])
@pytest.mark.parametrize("bad", [None, 20_000])
def test_a_long_file_is_looked_over_and_hardly_parsed(
    long, tmp_path, counted, step, bad
):
    with open(long, "rb") as file:
        lines = list(file)
    if bad:
        lines.insert(bad, b'{"step": 20001, "lo{"step": 20001}\n')
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(lines))
    part = records.up_to(path, step)
    size = path.stat().st_size
    assert counted["bytes"] == size
    assert counted["lines"] < 3000  # of blocks at the start, the bad line, the step
    assert part.bad == ([bad + 1] if bad else [])
    kept = b"".join(path.read_bytes()[a:b] for a, b in part.spans)
    wanted = [record(x) for x in range(1, step + 1)]
    assert kept == b"".join(json.dumps(x).encode() + b"\n" for x in wanted)
    assert part.last == (wanted[-1] if wanted else {})
    losses = {x["step"]: x["val_loss"] for x in wanted if "val_loss" in x}
    assert part.evaluated == max(losses, default=None)
    assert part.val_loss == losses.get(part.evaluated)
    finite = [x for x in losses.values() if x is not None]
    assert part.best_val_loss == min(finite, default=None)


def test_only_what_was_added_is_read(long, tmp_path, counted):
    path = tmp_path / "metrics.jsonl"
    shutil.copy(long, path)
    reader = records.Reader(path)
    assert sum(1 for _ in reader.added()) == 40_000
    for step in range(40_001, 40_004):
        line = json.dumps(record(step)).encode() + b"\n"
        counted["bytes"] = 0
        assert list(reader.added()) == []
        with open(path, "ab") as file:
            file.write(line[:9])
        assert list(reader.added()) == []
        with open(path, "ab") as file:
            file.write(line[9:])
        assert list(reader.added()) == [record(step)]
        assert counted["bytes"] < 2 * len(line) + 20
    counted["bytes"] = 0
    assert records.last(path) == record(40_003)
    assert counted["bytes"] < 10_000


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_file_that_was_cut_is_read_again(tmp_path, how):
    path = write(tmp_path / "metrics.jsonl", map(record, range(1, 10)))
    reader = records.Reader(path)
    assert len(list(reader.added())) == 9
    if how == "replaced":
        path.rename(tmp_path / "old")
    write(path, map(record, range(1, 6)))
    assert [x["step"] for x in reader.added()] == [1, 2, 3, 4, 5]


def test_the_last_line_counts_once_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": NaN}')
    assert [x["step"] for x in records.Reader(path).added()] == [1]
    assert math.isnan(list(records.read(path))[1]["loss"])
    assert records.last(path)["step"] == 2


def test_an_error_of_the_machine_is_no_bad_line(tmp_path):
    for read in (
        lambda path: list(records.read(path)),
        records.last,
        lambda path: records.up_to(path, 1),
    ):
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
