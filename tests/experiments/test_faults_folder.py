"""What a damaged folder of a run costs, and what is never done to it unasked."""

import errno
import json
import math
import os
import pathlib
import shutil
import signal

import pytest

from experiments import tasks
from experiments.errors import UserError
from experiments.trainer import loop
from experiments.trainer.metrics import MetricsWriter
from experiments.trainer.workdir import Workdir, WorkdirInUse
from tests.experiments.test_faults import (  # noqa: F401, fixtures
    Poisoned,
    copied,
    half,
    losses_of,
)
from tests.experiments.test_read_records import BAD
from tests.experiments.test_train import read


def contents(folder):
    """All that is below a folder, but for the log and what only marks a start."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name != "log.txt"
    }


def remove_checkpoints(folder):
    shutil.rmtree(folder / "checkpoints")


def leave_a_link_to_nothing(folder):
    remove_checkpoints(folder)
    (folder / "checkpoints").symlink_to(folder.parent / "not mounted")


def empty_checkpoints(folder):
    remove_checkpoints(folder)
    (folder / "checkpoints").mkdir()


def empty_all_files_of_checkpoints(folder):
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def refused(folder, config, says):
    before = contents(folder)
    with pytest.raises(UserError, match=says) as caught:
        loop.train(config, str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert contents(folder) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_checkpoints, "its checkpoints are away"),
        (leave_a_link_to_nothing, "checkpoints is a link to .*not mounted, which is"),
        (empty_checkpoints, "holds no checkpoint that can be read"),
        (empty_all_files_of_checkpoints, "holds no checkpoint that can be read"),
    ],
)
def test_no_run_begins_again_unasked(copied, damage, says):  # noqa: F811
    folder, config, _ = copied
    damage(folder)
    refused(folder, config, says)


ODD = {
    "null": b"null",
    "a list": b"[]",
    "empty": b"{}",
    "nothing": b"",
    "half": b'{"config": {"se',
    "no text": b"\xff\xfe\0",
    "too deep": b"[" * 100_000,
    "a folder": None,
}


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_an_odd_file_is_named_and_nothing_is_lost(copied, name):  # noqa: F811
    folder, config, _ = copied
    odd = dict(ODD)
    if name == "result.json":
        odd["a loss of text"] = b'{"reason": "completed", "steps": 12, "val_loss": "1"}'
        odd["no loss"] = b'{"reason": "completed", "steps": 12, "val_loss": null}'
        odd["another reason"] = b'{"reason": "bored", "steps": 12}'
    for content in odd.values():
        (folder / name).unlink(missing_ok=True)
        if content is None:
            (folder / name).mkdir()
            said = refused(folder, config, f"{name}: Is a directory")
            (folder / name).rmdir()
        else:
            (folder / name).write_bytes(content)
            said = refused(folder, config, f"{name} is not what a run writes: ")
        assert "--overwrite" not in said


def test_lines_without_a_record_cost_those_lines(copied):  # noqa: F811
    folder, config, losses = copied
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    bad = list(BAD.values())
    lines[5:5] = bad
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert loop.train(config, str(folder)) == 0
    assert losses_of(folder) == losses
    numbers = ", ".join(str(6 + i) for i in range(10))
    said = f"no record can be read in line {numbers} and {len(bad) - 10} more; left"
    assert said in (folder / "log.txt").read_text()
    assert read(folder)[1]["reason"] == "completed"


@pytest.mark.parametrize("left", [8, 0])
def test_lost_records_are_told_and_the_loss_is_found_again(copied, left):  # noqa: F811
    folder, config, _ = copied
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    wanted = json.loads(lines[-1])["val_loss"]
    path.write_text("".join(lines[:left]))
    assert loop.train(config, str(folder)) == 0
    told = f"the records after step {left} up to 12 are lost"
    assert told in (folder / "log.txt").read_text()
    records, result = read(folder)
    assert (result["reason"], result["steps"]) == ("completed", 12)
    assert result["val_loss"] == wanted == records[-1]["val_loss"]
    assert [x["step"] for x in records] == [*range(1, left + 1), 12]


def test_a_result_that_cannot_be_written_is_no_success(copied):  # noqa: F811
    folder, config, _ = copied
    (folder / "result.json.new").mkdir()
    with pytest.raises(UserError, match=r"result.json.new: Is a directory"):
        loop.train(config, str(folder))


def test_a_run_whose_last_step_was_skipped_is_not_completed(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr(Poisoned, "bad", (3,))
    monkeypatch.setitem(tasks.TASKS, "language_model", Poisoned)
    config = small(train__steps=4)
    assert loop.train(config, str(tmp_path)) == 3
    result = read(tmp_path)[1]
    assert (result["reason"], result["steps"]) == ("diverged", 4)
    assert math.isfinite(result["val_loss"])


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGHUP, "hangup"),
        (signal.SIGTERM, "preempted"),
        (signal.SIGINT, "interrupted"),
    ],
)
def test_each_signal_saves_a_checkpoint(small, tmp_path, monkeypatch, number, reason):
    def write(writer, record, real=MetricsWriter.write):
        real(writer, record)
        if record["step"] == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricsWriter, "write", write)
    # Whoever runs the tests may ignore hangups.
    inherited = signal.signal(number, signal.default_int_handler)
    try:
        status = loop.train(small(train__steps=900), str(tmp_path))
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, inherited)
    assert status == 128 + number
    records, result = read(tmp_path)
    assert (result["reason"], result["steps"]) == (reason, records[-1]["step"])
    assert [x.name for x in (tmp_path / "checkpoints").iterdir()] == [
        str(result["steps"])
    ]


def test_a_hangup_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.reasons
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def opened(copied):  # noqa: F811
    """Opens the folder of a run, as a second start does."""
    folder, config, _ = copied
    digest = json.loads((folder / "config.json").read_text())["data_digest"]
    return folder, lambda **words: Workdir(str(folder), config, digest, **words)


def test_removing_the_lock_lets_nobody_in(opened):
    folder, start = opened
    first = start()
    for _ in range(2):
        with pytest.raises(WorkdirInUse, match="in use by another run"):
            start()
        (folder / ".lock").unlink(missing_ok=True)
    first.close()
    start().close()


def test_a_file_system_that_locks_no_folders_has_the_file(opened, monkeypatch):
    _, start = opened
    locked = []

    def flock(lock, how):
        if os.path.isdir(f"/proc/self/fd/{lock}"):
            raise OSError(errno.EBADF, "no")
        locked.append(how)

    monkeypatch.setattr("fcntl.flock", flock)
    start().close()
    assert len(locked) == 1


def test_overwriting_removes_all_or_nothing(opened, monkeypatch):
    folder, start = opened
    elsewhere = folder.parent / "scratch"
    (folder / "checkpoints").rename(elsewhere)
    (folder / "checkpoints").symlink_to(elsewhere)
    before = contents(folder)
    with pytest.raises(UserError, match=r"a link to .*scratch, and --over"):
        start(overwrite=True)
    assert contents(folder) == before and (elsewhere / "12").is_dir()
    (folder / "checkpoints").unlink()
    elsewhere.rename(folder / "checkpoints")
    before = contents(folder)

    def rename(path, to, real=pathlib.Path.rename):
        if path.name == "checkpoints":  # as a folder that is a mount
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return real(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", rename)
        with pytest.raises(UserError, match="checkpoints: Device or resource"):
            start(overwrite=True)
    assert contents(folder) == before
    # A link to an empty folder stays one.
    shutil.rmtree(folder / "checkpoints")
    elsewhere.mkdir()
    (folder / "checkpoints").symlink_to(elsewhere)
    start(overwrite=True).close()
    assert (folder / "checkpoints").is_symlink()
    assert {x.name for x in folder.iterdir()} == {".lock", "checkpoints"}
