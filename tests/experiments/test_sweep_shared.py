"""Launchers that share a storage, and what they do while it is away.

One launcher is a process, which is killed, the other one runs in here; the workers are
those of `test_sweep_real.py`.
"""

import collections
import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest

from experiments import points
from experiments.launchers import claims, local, running, storage
from experiments.launchers.claims import Claims
from experiments.launchers.storage import Storage, of_file
from tests.experiments.test_sweep_real import (
    command,
    opened,
    quick,
    rates,
    script,
    whole,
    written,
)
from tests.helpers.servers import eventually
from tests.helpers.trials import recorded


def ended(workdir):
    """The points that workers have completed in a folder, as often as they did."""
    path = workdir / "completed"
    return path.read_text().split() if path.exists() else []


@pytest.fixture
def impatient(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_BEATS", 0.5)
    monkeypatch.setattr(claims, "SECONDS_TO_STALE", 4.0)
    monkeypatch.setattr(running, "_SECONDS_BETWEEN_CLAIMS", 0.5)
    monkeypatch.setattr(local, "command", quick(script(tmp_path)))


@contextlib.contextmanager
def meanwhile(work):
    """Does something beside."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def share(tmp_path, workdirs, url):
    """Two launchers share 12 points; the first is killed. What ended, by folder."""
    path = written(tmp_path, axes=rates(12))
    words, environment = command(tmp_path, path, workdirs[0], f"--storage={url}")
    # On a slow machine the first may end all but a few in its own folder.
    least = 5 if workdirs[0] == workdirs[-1] else 2
    first = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def kill():
        eventually(lambda: len(ended(workdirs[-1])) >= least, seconds=240)
        os.kill(first.pid, signal.SIGKILL)

    try:
        eventually(lambda: len(ended(workdirs[0])) >= 2, seconds=240)
        second = opened(path, workdirs[-1], url)
        with meanwhile(kill):
            assert second.run() == 0
    finally:
        first.kill()
        assert first.wait() == -signal.SIGKILL
    wanted = {p.name: p.config.optimizer.learning_rate for p in points.load(path)}
    assert {n: r["val_loss"] for n, r in second.results.items()} == wanted
    trials = recorded(url)
    assert collections.Counter(state for state, *_ in trials) == {"COMPLETE": 12}
    assert {name: value for _, name, value in trials} == wanted
    for workdir in workdirs:
        assert all(whole(workdir / name) for name in ended(workdir))
    return sorted(wanted), [ended(workdir) for workdir in dict.fromkeys(workdirs)]


def test_two_launchers_share_a_workdir(tmp_path, impatient):
    url = of_file(tmp_path / "optuna.db")
    wanted, (trained,) = share(tmp_path, [tmp_path / "w"] * 2, url)
    assert sorted(trained) == wanted  # each once


def test_two_machines_share_postgres_which_is_started_again(
    tmp_path, impatient, postgres, capsys
):
    workdirs = [tmp_path / "one", tmp_path / "two"]

    def restart():
        eventually(lambda: ended(workdirs[1]), seconds=240)
        postgres.stop()
        time.sleep(2.0)
        postgres.start()

    with meanwhile(restart):
        wanted, trained = share(tmp_path, workdirs, postgres.url)
    assert all(trained)
    both = [name for names in trained for name in names]
    # What the killed launcher's workers were at is done again, as their folder may be
    # on a machine that has gone; nothing else is.
    assert set(both) == set(wanted)
    assert len(both) <= len(wanted) + 2
    said = capsys.readouterr().out
    assert said.count("the storage does not answer") <= 3
    assert "Traceback" not in said


def test_no_launcher_leaves_while_points_wait(tmp_path, impatient):
    path, workdir = written(tmp_path, axes=rates(3)), tmp_path / "w"
    (tmp_path / "other").mkdir()
    sweep = opened(path, workdir)
    mine = Storage(of_file(workdir / "optuna.db"))
    held = [("swept", next(iter(sweep.points)))]
    with Claims(mine, tmp_path / "other") as other:
        assert other.take(held, 1) == held
        began = time.monotonic()

        def release():
            eventually(lambda: len(sweep.results) == 2)
            time.sleep(6.0)  # its heart beats
            other.release(held[0])

        with meanwhile(release):
            assert sweep.run() == 0
        assert time.monotonic() - began > 6.0
    assert len(sweep.results) == 3


def test_a_claim_that_was_lost_is_the_other_launchers_affair(tmp_path, impatient):
    path, workdir = written(tmp_path, axes=rates(2)), tmp_path / "w"
    slow = quick(script(tmp_path, seconds=1.0))
    local.command = slow  # which the fixture puts back
    sweep = opened(path, workdir)
    url = of_file(workdir / "optuna.db")
    name = next(iter(sweep.points))
    key = ("swept", name)

    def take_over():
        eventually(lambda: name in sweep.jobs)
        with Storage(url).engine.begin() as connection:
            table = claims._CLAIMS
            change = table.update().where(table.c.point == name)
            connection.execute(change.values(owner="far/1/x", beat=0))
        eventually(lambda: key in sweep.trials._claims.lost)
        local.command = quick(script(tmp_path))

    with meanwhile(take_over):
        assert sweep.run() == 0
    # The other one did not come back: after its heart had stopped it was done here.
    assert sorted(ended(workdir)) == sorted(sweep.points)
    assert [state for state, *_ in recorded(url)] == ["COMPLETE"] * 2


HANGS = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
if not (folder / "tried").exists():
    (folder / "tried").touch()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "metrics.jsonl").write_text('{"step": 1}\\n')
    time.sleep(600)
(folder / "metrics.jsonl").unlink()
"""


def test_a_worker_that_hangs_is_ended_and_its_point_tried_again(
    tmp_path, impatient, monkeypatch, capsys
):
    monkeypatch.setattr(running, "_SECONDS_TO_KILL", 0.5)
    worker = script(tmp_path)
    text = (tmp_path / "worker.py").read_text()
    (tmp_path / "worker.py").write_text(HANGS + text)
    monkeypatch.setattr(local, "command", quick(worker))
    workdir = tmp_path / "w"
    sweep = opened(written(tmp_path, axes=rates(1)), workdir, hang_seconds=2.0)
    assert sweep.run() == 0
    (name,) = sweep.results
    said = capsys.readouterr().out
    assert f"{name} (learning_rate=0.001): no progress for 2 seconds; tried" in said
    states = [state for state, *_ in recorded(of_file(workdir / "optuna.db"))]
    assert states == ["FAIL", "COMPLETE"]


def test_without_its_storage_a_sweep_ends_with_one_line_and_goes_on(
    tmp_path, impatient, monkeypatch
):
    """The database's folder is read-only of a sudden, as far as SQLite is concerned."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(storage, "_TIMEOUT_SECONDS", 0.2)
    path, workdir = written(tmp_path, axes=rates(2)), tmp_path / "w"
    sweep = opened(path, workdir)
    url = of_file(workdir / "optuna.db")
    held = Storage(url).engine.connect()

    def lock():
        eventually(lambda: len(sweep.jobs) == 2)
        held.exec_driver_sql("BEGIN EXCLUSIVE")

    with meanwhile(lock), pytest.raises(storage.StorageAway) as caught:
        sweep.run()
    assert str(caught.value).startswith(
        f"--storage: {url} does not answer, Operational"
    )
    assert str(caught.value).isprintable()
    held.rollback()
    held.close()
    assert opened(path, workdir).run() == 0
    assert sorted(ended(workdir)) == sorted(sweep.points)
    assert [state for state, *_ in recorded(url)] == ["COMPLETE"] * 2
