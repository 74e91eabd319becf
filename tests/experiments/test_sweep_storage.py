"""The database of a sweep: its URL and password, claims in it, time without it."""

import functools
import sqlite3
import threading
import time

import optuna
import pytest

from experiments.errors import UserError
from experiments.launchers import claims, storage
from experiments.launchers.claims import Claims
from experiments.launchers.storage import Storage, StorageAway, of_file
from tests.helpers.servers import eventually

ODD = ("a?mode=ro&b=c", "a#b%20 c+d;{x}é")


def test_a_database_lies_in_its_folder_whatever_that_is_called(tmp_path):
    for name in ODD:
        folder = tmp_path / name
        folder.mkdir()
        opened = Storage(of_file(folder / "optuna.db"))
        assert opened.optuna.get_all_studies() == []
        opened.engine.dispose()
        assert [path.name for path in folder.iterdir()] == ["optuna.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ODD)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr3t@127.0.0.1:1/db",
        "postgresql://me:s3%63r3t@127.0.0.1:1/db",
        "postgresql+psycopg2://me:s3cr3t@127.0.0.1:1/db",
        "postgresql://me:s3cr3t@x@127.0.0.1:1/db",
        "postgresql://me:s3cr3t@127.0.0.1:port/db",
        "postgresql://me:s3cr3t/@127.0.0.1:1/db",
        "postgresql://me@127.0.0.1:1/db?password=s3cr3t",
        "postgresql://me@127.0.0.1:1/db?sslmode=odd&password=s3cr3t",
        "postgres://me:s3cr3t@127.0.0.1:1/db",
        "postgresqI://me:s3cr3t@127.0.0.1:1/db",
        "mysql://me:s3cr3t@127.0.0.1:1/db",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(UserError) as caught:
        Storage(url)
    said = str(caught.value)
    assert said.startswith("--storage: ")
    assert said.isprintable()
    assert "s3cr3t" not in said
    assert "s3%63r3t" not in said
    assert "***" in said
    assert (".pgpass" in said) == url.startswith("postgres")
    # Nor does what a traceback would add.
    assert caught.value.__suppress_context__


def test_a_locked_database_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(storage, "_SECONDS_BETWEEN_TRIES", 0.1)
    opened = Storage(of_file(tmp_path / "optuna.db"))
    said = []
    opened.say = said.append
    holder = sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.0, holder.rollback).start()
    create = functools.partial(optuna.create_study, storage=opened.optuna)
    opened.patiently(create, study_name="one")
    assert optuna.get_all_study_names(opened.optuna) == ["one"]
    (line,) = said
    assert line.startswith("the storage does not answer, waiting up to 300 seconds: ")
    assert line.endswith("OperationalError: database is locked")

    # For good: one line; nor is it waited for where the sweep is to stop.
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(StorageAway, match=r"does not answer, .*locked; .*folders"):
        opened.patiently(create, study_name="two")
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 300)
    with pytest.raises(StorageAway):
        opened.patiently(create, study_name="two")
    holder.close()


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Claims of two launchers with a folder each."""
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_BEATS", 0.05)
    monkeypatch.setattr(claims, "SECONDS_TO_STALE", 0.4)
    opened = [Storage(of_file(tmp_path / "optuna.db")) for _ in range(2)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return [
        Claims(one, tmp_path / name) for one, name in zip(opened, "ab", strict=True)
    ]


KEYS = [("swept", name) for name in ("one", "two", "three")]


def test_a_claim_has_one_owner_until_its_heart_stops(two):
    first, second = two
    with second:
        with first:
            assert first.take(KEYS, 2) == KEYS[:2]
            assert second.take(KEYS, 3) == KEYS[2:]
            assert first.take(KEYS, 3) == KEYS[:2]  # its own
            first.release(KEYS[0])
            assert second.take(KEYS[:2], 2) == KEYS[:1]
            for _ in range(10):  # it beats
                time.sleep(0.1)
                assert second.take(KEYS[1:2], 1) == []
            first._ended.set()  # as a machine that sleeps
            assert eventually(lambda: second.take(KEYS[1:2], 1)) == KEYS[1:2]
            assert not first.lost
            first._ended.clear()
            threading.Thread(target=first._beat, daemon=True).start()
            eventually(lambda: first.lost == {KEYS[1]})
        assert second.take(KEYS, 3) == KEYS


def race(url, folder):
    """Four launchers open an empty database and claim points: what each has taken."""
    keys = [("swept", str(number)) for number in range(30)]
    taken, wrong = [], []

    def launch():
        try:
            own = Claims(Storage(url), folder)
            while got := own.take([key for key in keys if key not in taken], 3):
                taken.extend(got)
        except BaseException as error:
            wrong.append(error)

    racing = [threading.Thread(target=launch) for _ in range(4)]
    for one in racing:
        one.start()
    for one in racing:
        one.join()
    assert not wrong
    assert sorted(taken) == sorted(keys)


def test_many_launchers_at_once_claim_each_point_once(tmp_path):
    race(of_file(tmp_path / "optuna.db"), tmp_path)


def test_many_launchers_at_once_open_postgres(tmp_path, postgres):
    race(postgres.url, tmp_path)
