"""What a sweep takes as finished, what as failed, and why."""

import json
import pathlib

import pytest

import optlab
from experiments import points, sweep
from experiments.errors import UserError
from experiments.launchers import job
from experiments.launchers.watch import LEAST_SECONDS, START_SECONDS, Watch
from experiments.trainer import loop
from experiments.trainer.program import Program

RATE = "optimizer.learning_rate"
CONFIG = """
from configs import digits

def get_config():
    config = digits.get_config()
    config.train.steps = 10
    {}
    return config
"""


@pytest.fixture
def swept(tmp_path, given):
    """Writes a config with a line more, and sweeps over it."""
    config, path = tmp_path / "config.py", tmp_path / "swept.py"
    axes = {RATE: [0.001, 0.01]}
    path.write_text(
        f"def get_sweep():\n    return {{'config': {str(config)!r}, 'axes': {axes}}}\n"
    )

    def run(line, **flags):
        config.write_text(CONFIG.format(line))
        given(sweep._FLAGS, sweep=path, workdir=tmp_path / "w", **flags)
        return sweep.main([], [])

    return run


def folders(tmp_path):
    return sorted(p for p in (tmp_path / "w").iterdir() if (p / "config.json").exists())


def test_a_point_is_what_its_config_says_today(tmp_path, swept, stub, capsys):
    calls = stub(lambda rate: rate)
    assert swept("") == 0
    assert len(calls) == 2
    # What a run may change when it goes on, a sweep may too.
    assert swept("config.train.eval_every = 7") == 0
    assert len(calls) == 2
    first = points.load(str(tmp_path / "swept.py"))[0].name
    for line, said in (
        ("config.train.steps = 11", "train.steps=10, not 11"),
        ("config.optimizer.kwargs = {'b1': 0.5}", "optimizer.kwargs.b1=0.9, not 0.5"),
    ):
        with pytest.raises(UserError) as caught:
            swept(line)
        assert str(caught.value) == (
            f"--sweep: point {first} (learning_rate=0.001) in {tmp_path}/w holds a run "
            f"with {said} (and 1 more); choose another --workdir or pass "
            "--overwrite"
        )
        assert caught.value.status == 2
        assert len(calls) == 2
    capsys.readouterr()
    assert swept("config.train.steps = 11", dry_run=True) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].endswith("holds train.steps=10, not 11")
    assert listed[2].startswith("2 of 2 points left: 22 steps")
    assert swept("config.train.steps = 11", dry_run=False, overwrite=True) == 0
    assert len(calls) == 4
    assert swept("config.train.steps = 11", overwrite=False) == 0
    assert len(calls) == 4


def test_a_worker_that_trained_something_else_is_not_asked_again(
    tmp_path, swept, stub, monkeypatch, capsys
):
    """As where the code changes under a launcher."""
    calls = stub(lambda rate: rate)
    trained = loop.train

    def newer(config, workdir, *, overrides):
        status = trained(config, workdir, overrides=overrides)
        path = pathlib.Path(workdir) / "config.json"
        settings = json.loads(path.read_text())
        settings["config"]["train"]["steps"] = 12
        path.write_text(json.dumps(settings))
        return status

    monkeypatch.setattr(loop, "train", newer)
    assert swept("") == 1
    assert len(calls) == 2
    said = "failed, it was trained with train.steps=12, not 10: start the sweep again"
    assert capsys.readouterr().out.count(said) == 2


def test_a_point_is_of_the_data_of_today(tmp_path, swept, stub):
    calls = stub(lambda rate: rate)
    assert swept("") == 0
    path = folders(tmp_path)[1] / "config.json"
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps(recorded | {"data_digest": "other"}))
    with pytest.raises(UserError, match=rf"{path.parent.name} .*data_digest='other', "):
        swept("")
    for text in ("null", "[]", "{}", "", '{"config": 3}', '{"config": {}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"an unreadable config\.json"):
            swept("")
    assert len(calls) == 2
    assert swept("", overwrite=True) == 0
    assert len(calls) == 3


ODD = (
    *("null", "[]", "{}", "3", '"completed"', "", "\0\0", '{"reason": "completed"'),
    *('{"reason": "completed"}', '{"reason": []}', '{"reason": {"a": 1}}', "[" * 9999),
    '{"reason": "completed", "val_loss": null, "steps": 3}',
    '{"reason": "completed", "val_loss": "0.1", "steps": 3}',
    '{"reason": "completed", "val_loss": NaN, "steps": 3}',
    '{"reason": "completed", "val_loss": 0.1, "steps": "3"}',
    '{"reason": "interrupted", "val_loss": 0.1, "steps": 3}',
)


def test_an_odd_result_is_none_and_stops_no_other_point(tmp_path, swept, stub):
    calls = stub(lambda rate: rate)
    assert swept("") == 0
    folder = folders(tmp_path)[0]
    path = folder / "result.json"
    good = path.read_text()
    for text in ODD:
        path.write_text(text)
        assert job.finished(folder) is None, text
    path.write_bytes(b"\xff\xfe")
    assert job.finished(folder) is None
    path.write_text("[]")
    assert swept("") == 0
    assert len(calls) == 3
    assert path.read_text() == good
    path.unlink()
    path.mkdir()
    assert job.finished(folder) is None
    path.rmdir()
    path.write_text('{"reason": "diverged", "val_loss": "x"}')
    diverged = {"reason": "diverged", "val_loss": None, "steps": None}
    assert job.finished(folder) == diverged | {"total_seconds": None}


TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 3, in f
    g()
{}
"""
FOOTER = """--------------------
For simplicity, JAX has removed its internal frames from the traceback of the \
following exception. Set JAX_TRACEBACK_FILTERING=off to include these.
"""
# Python 3.13 where even the traceback has no memory.
DUMP = """object address  : 0x7f22b9d4d180
object refcount : 3
object type     : 0x7f22ba4f4de0
object type name: MemoryError
object repr     : MemoryError()
lost sys.stderr
"""
LOGS = [
    (1, TRACEBACK.format("ValueError: no\nsecond line") + FOOTER, "ValueError: no"),
    (
        1,
        TRACEBACK.format("KeyError: 'a'")
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + TRACEBACK.format("ValueError: b"),
        "ValueError: b",
    ),
    (1, TRACEBACK.format(DUMP), "MemoryError"),
    (2, "step 1\nerror: --workdir: full\n" + TRACEBACK.format("OSError: x"), "--workd"),
    (2, "error: first\n\nerror: second\nthread ends\n", "second"),
    (1, "step 1\nwords\n\n", "words"),
    (1, "", "exit status 1"),
    (-9, "step 1\n", "killed by SIGKILL"),
    (-35, "step 1\n", "killed by signal 35"),
]


def test_a_points_reason_is_its_own_last_word(tmp_path):
    for status, text, expected in LOGS:
        before = "error: of an earlier attempt\n" + TRACEBACK.format("Older: x")
        (tmp_path / "worker.log").write_text(before)
        start = job.log_size(tmp_path)
        (tmp_path / "worker.log").write_text(before + text)
        assert job.why_it_left(tmp_path, status, start).startswith(expected)
    (tmp_path / "worker.log").unlink()
    assert job.log_size(tmp_path) == 0
    assert job.why_it_left(tmp_path, 1, 0) == "exit status 1"


def test_how_long_a_worker_may_be_silent_follows_from_what_it_did(
    tmp_path, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    records = tmp_path / "metrics.jsonl"

    def silent(watch, seconds):
        clock[0] += seconds
        return watch.silence()

    watch = Watch(tmp_path, None)
    assert silent(watch, START_SECONDS - 1) is None
    assert silent(watch, 2) == START_SECONDS + 1
    (tmp_path / "log.txt").write_text("compiled")
    assert silent(watch, 1) is None
    assert silent(watch, START_SECONDS - 1) is None
    watch.reset()  # it went back to the queue
    assert silent(watch, 100) is None
    records.write_text("1\n")  # the first record, after 110 seconds
    assert silent(watch, 10) is None
    assert silent(watch, LEAST_SECONDS - 1) is None
    assert silent(watch, 2) == LEAST_SECONDS + 1
    records.write_text("1\n2\n")  # an evaluation of 1000 seconds
    assert silent(watch, 1000 - LEAST_SECONDS - 1) is None
    assert silent(watch, 19_999) is None
    assert silent(watch, 2) == 20_001
    for limit, allowed in ((5.0, 5), (0, 10**9)):
        watch = Watch(tmp_path, limit)
        assert silent(watch, allowed) is None
        assert (silent(watch, 1) is None) == (limit == 0)


REGISTERS = """
import optax
import optlab
from configs import digits

def plain(learning_rate, *, momentum=0.5):
    return optax.sgd(learning_rate, momentum)

optlab.register({name!r}, plain)

def get_config():
    config = digits.get_config()
    config.optimizer.name = {name!r}
    return config
"""


def test_an_optimizer_of_a_config_file_is_swept(tmp_path, stub, given, monkeypatch):
    monkeypatch.setattr(optlab.registry, "_ENTRIES", dict(optlab.registry._ENTRIES))
    config = tmp_path / "config.py"
    config.write_text(REGISTERS.format(name="of_this_file"))
    part = {"config": str(config), "axes": {"optimizer.kwargs.momentum": [0.1, 0.2]}}
    path = tmp_path / "swept.py"
    path.write_text(f"def get_sweep():\n    return {part!r}\n")
    calls = stub(lambda rate: rate)
    given(sweep._FLAGS, sweep=path, workdir=tmp_path / "w")
    assert sweep.main([], []) == 0
    assert len(calls) == 2
    # The edited file is another module, and the optimizer the same one.
    config.write_text(config.read_text() + "\n# a comment\n")
    found = points.load(str(path))
    assert [point.config.optimizer.kwargs.momentum for point in found] == [0.1, 0.2]
    Program(found[0].config)
    # A name belongs to one file.
    (tmp_path / "other.py").write_text(config.read_text())
    path.write_text(path.read_text().replace("config.py", "other.py"))
    with pytest.raises(UserError, match="'of_this_file' is registered already"):
        points.load(str(path))


def test_a_field_is_set_back_to_none(tmp_path):
    field = "optimizer.adam_learning_rate"
    path, config = tmp_path / "swept.py", tmp_path / "config.py"
    config.write_text(CONFIG.format(f"config.{field} = 0.1"))
    part = {"config": str(config)}
    for axes, design in (
        ({field: [None, 0.2]}, "grid"),
        ({field: [0.2, None]}, "one_at_a_time"),
    ):
        given = part | {"axes": axes, "design": design}
        path.write_text(f"def get_sweep():\n    return {given!r}\n")
        found = [p.config.optimizer.adam_learning_rate for p in points.load(str(path))]
        assert found == ([None, 0.2] if design == "grid" else [0.1, 0.2, None])
    # The point about which others vary may have none.
    part = {"config": "configs/digits.py", "design": "one_at_a_time"}
    given = part | {"axes": {field: [0.2]}}
    path.write_text(f"def get_sweep():\n    return {given!r}\n")
    labels = [point.label() for point in points.load(str(path))]
    assert labels == ["adam_learning_rate=None", "adam_learning_rate=0.2"]


def test_a_home_is_no_folder_called_tilde(tmp_path, stub, given, monkeypatch):
    stub(lambda rate: rate)
    path = tmp_path / "swept.py"
    config = str(pathlib.Path("configs/digits.py").absolute())
    path.write_text(f"def get_sweep():\n    return {{'config': {config!r}}}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    given(sweep._FLAGS, sweep="swept.py", workdir="~/x")
    assert sweep.main([], []) == 0
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "home" / "x" / "optuna.db").exists()
