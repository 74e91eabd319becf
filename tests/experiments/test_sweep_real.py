"""Sweeps of many points with the servers and the accidents that they meet.

Launcher, workers and servers are real processes. What the workers train is replaced by
a few lines that hold the folder's lock, write a record a step and go on where they were
killed; `test_sweep_trains.py` has the training itself.
"""

import collections
import contextlib
import functools
import http.client
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from experiments import points, sweep
from experiments.data import digits
from experiments.launchers import LAUNCHERS, local
from experiments.launchers.running import Sweep
from experiments.launchers.storage import Storage, of_file
from experiments.launchers.trials import Trials
from tests.helpers.servers import eventually, free_port
from tests.helpers.trials import recorded

RATE = "optimizer.learning_rate"
STEPS = 5
# As a run does: lock, records that are never twice there, the result last.
WORKER = """
import fcntl, json, os, pathlib, sys, time
folder, rate = pathlib.Path(sys.argv[1]), float(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
lock = (folder / ".lock").open("w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(4)
with (folder / "metrics.jsonl").open("a+") as file:
    file.seek(0)
    for step in range(len(file.readlines()) + 1, 6):
        time.sleep(0.1)
        file.write(json.dumps({"step": step, "val_loss": rate}) + "\\n")
        file.flush()
result = {"val_loss": rate, "reason": "completed", "steps": 5, "total_seconds": 0.5}
with (folder.parent / "completed").open("a") as file:
    file.write(folder.name + "\\n")
(folder / "result.tmp").write_text(json.dumps(result))
os.replace(folder / "result.tmp", folder / "result.json")
"""
# The command itself, with that instead of `experiments.train`.
LAUNCHER = """
from experiments import command, sweep
from experiments.launchers import claims, local
from tests.experiments.test_sweep_real import quick

local.command = quick({worker!r})
claims.SECONDS_BETWEEN_BEATS = 0.5
claims.SECONDS_TO_STALE = 4.0
command.run(sweep.main, sweep._FLAGS)
"""


def written(folder, **part):
    """A sweep file of one part."""
    path = folder / "swept.py"
    given = {"config": "configs/digits.py"} | part
    path.write_text(f"def get_sweep():\n    return {given!r}\n")
    return str(path)


def rates(count):
    return {RATE: [round(1e-3 * 1.1**i, 7) for i in range(count)]}


@functools.cache
def digest():
    return digits.load().digest


def script(folder, seconds=0.1):
    """The worker's file, at so much a step."""
    path = folder / "worker.py"
    path.write_text(WORKER.replace("sleep(0.1)", f"sleep({seconds})"))
    return str(path)


def quick(worker):
    """The words that work on a point, for a launcher in here."""

    def words(point, workdir):
        folder = workdir / point.name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"config": point.config.to_dict(), "data_digest": digest()}
        (folder / "config.json").write_text(json.dumps(settings))
        rate = str(point.config.optimizer.learning_rate)
        return [sys.executable, "-S", worker, str(folder), rate]

    return words


def opened(path, workdir, storage=None, hang_seconds=None, **options):
    wanted = points.load(path)
    workdir.mkdir(exist_ok=True)
    trials = Trials(
        Storage(storage or of_file(workdir / "optuna.db")),
        *("swept", wanted, workdir),
        attempts=options.pop("attempts", sweep.ATTEMPTS),
        anew=False,
    )
    started = LAUNCHERS["local"](2, workdir, options)
    return Sweep(wanted, workdir, trials, started, hang_seconds)


def whole(folder):
    """Whether a point's records are each step once."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))


def processes(word):
    """The processes with a word in their command line."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def command(folder, path, workdir, *flags):
    """The words of a launcher in a process, and its environment."""
    launcher = folder / "launcher.py"
    launcher.write_text(LAUNCHER.format(worker=script(folder)))
    words = [sys.executable, str(launcher), f"--sweep={path}", f"--workdir={workdir}"]
    words += ["--launcher=local", "--workers=2", *flags]
    return words, os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}


def test_forty_points_two_workers_killed_again_and_again(tmp_path):
    path = written(tmp_path, axes=rates(40))
    workdir = tmp_path / "w"
    words, environment = command(tmp_path, path, workdir)
    completed = workdir / "completed"

    def ended():
        return len(completed.read_text().split()) if completed.exists() else 0

    generator = random.Random(0)
    for goal in (5, 14, 24, 33):
        launcher = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        eventually(lambda goal=goal: ended() >= goal, seconds=240)
        workers = eventually(lambda: processes(f"{workdir}/"))
        victims = [launcher.pid, *generator.sample(workers, len(workers) // 2 + 1)]
        generator.shuffle(victims)  # the launcher before its workers, or after
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(generator.random() * 0.2)
        launcher.wait()
        assert ended() < 40
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 completed; best 0.0010 at learning_rate=0.001 " in done.stdout
    wanted = {p.name: p.config.optimizer.learning_rate for p in points.load(path)}
    trials = recorded(f"sqlite:///{workdir}/optuna.db")
    good = {point: value for state, point, value in trials if state == "COMPLETE"}
    assert good == wanted
    # A worker killed under a living launcher is a failed attempt, and nothing else is.
    assert collections.Counter(state for state, _, _ in trials)["COMPLETE"] == 40
    assert {state for state, _, _ in trials} <= {"COMPLETE", "FAIL"}
    assert sorted(completed.read_text().split()) == sorted(wanted)
    assert all(whole(workdir / name) for name in wanted)


def test_pruning_stops_what_is_worse_and_remembers(tmp_path, monkeypatch, capsys):
    # Slow enough for the launcher to look before the end, on a busy machine too.
    monkeypatch.setattr(local, "command", quick(script(tmp_path, 0.5)))
    workdir, path = (
        tmp_path / "w",
        written(tmp_path, axes=rates(8), pruning={"first": 2, "factor": 2}),
    )
    opening = opened(path, workdir)
    assert opening.run() == 0
    opening.board.summary()
    # The first is the best; what came after it is worse, save what ran beside it.
    first = next(iter(opening.points))
    assert first in opening.results
    assert len(opening.pruned) >= 5
    assert opening.pruned.isdisjoint(opening.results)
    assert len(opening.pruned) + len(opening.results) == 8
    said = capsys.readouterr().out
    assert f"{len(opening.pruned)} pruned; best 0.0010" in said
    trials = recorded(f"sqlite:///{workdir}/optuna.db")
    assert {point for state, point, _ in trials if state == "PRUNED"} == opening.pruned
    assert not any(whole(workdir / name) for name in opening.pruned)
    again = opened(path, workdir)
    assert again.run() == 0
    assert again.pruned == opening.pruned
    assert recorded(f"sqlite:///{workdir}/optuna.db") == trials


GREEDY = """
import sys
held = []
for _ in range(200):
    held.append(bytes([1]) * 10_000_000)
"""


@pytest.fixture
def cgroup():
    """A control group whose processes may have 50 MB."""
    top = pathlib.Path("/sys/fs/cgroup")
    first = (top / "memory").is_dir()  # the version
    folder = top / ("memory" if first else "") / f"sweep-{os.getpid()}"
    limit = folder / ("memory.limit_in_bytes" if first else "memory.max")
    try:
        folder.mkdir()
        with limit.open("r+") as file:  # which the kernel has made, or nobody
            file.write("50M")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"needs a memory control group: {error}")
    yield folder
    folder.rmdir()


def greedy(tmp_path, monkeypatch, capsys, before):
    """Runs a point without memory, and gives what the sweep says of it."""
    words = ["sh", "-c", f'{before} exec "$@"', "-", sys.executable, "-S", "-c", GREEDY]
    monkeypatch.setattr(local, "command", lambda point, folder: words)
    opening = opened(written(tmp_path, axes=rates(1)), tmp_path / "w")
    assert opening.run() == 1
    opening.board.summary()
    said = capsys.readouterr().out
    ((name, error),) = opening.failed.items()
    assert said.count(f"{error}; tried again") == 2
    assert f"failed: {tmp_path}/w/{name} (learning_rate=0.001): {error}" in said
    trials = recorded(f"sqlite:///{tmp_path}/w/optuna.db")
    assert trials == [("FAIL", name, None)] * 3
    return error


def test_a_worker_at_its_limit_of_memory_has_failed(tmp_path, monkeypatch, capsys):
    error = greedy(tmp_path, monkeypatch, capsys, "ulimit -v 200000;")
    assert error == "MemoryError"


def test_a_worker_that_the_kernel_kills_has_failed(
    tmp_path, monkeypatch, capsys, cgroup
):
    before = f"echo $$ > {cgroup}/cgroup.procs;"
    assert greedy(tmp_path, monkeypatch, capsys, before) == "killed by SIGKILL"


def test_postgres_holds_the_trials(tmp_path, monkeypatch, postgres):
    monkeypatch.setattr(local, "command", quick(script(tmp_path)))
    path = written(tmp_path, axes=rates(4))
    assert opened(path, tmp_path / "w", storage=postgres.url).run() == 0
    trials = recorded(postgres.url)
    assert [(s, v) for s, _, v in trials] == [("COMPLETE", r) for r in rates(4)[RATE]]
    # Again there is nothing to do; another machine's folder learns nothing by itself.
    assert opened(path, tmp_path / "w", storage=postgres.url).run() == 0
    assert recorded(postgres.url) == trials
    assert not (tmp_path / "w" / "optuna.db").exists()


def test_the_dashboard_shows_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "command", quick(script(tmp_path)))
    workdir = tmp_path / "w"
    assert opened(written(tmp_path, axes=rates(2)), workdir).run() == 0
    port = free_port()
    served = subprocess.Popen(
        [
            str(pathlib.Path(sys.executable).parent / "optuna-dashboard"),
            *(f"sqlite:///{workdir}/optuna.db", "--port", str(port)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def get(path):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as asked:
            asked.request("GET", path)
            return json.loads(asked.getresponse().read())

    def answer():
        with contextlib.suppress(ConnectionRefusedError):
            return get("/api/studies")
        return None

    try:
        (study,) = eventually(answer)["study_summaries"]
        assert study["study_name"] == "swept"
        shown = get(f"/api/studies/{study['study_id']}?after=0")
        assert [t["values"] for t in shown["trials"]] == [[r] for r in rates(2)[RATE]]
    finally:
        served.kill()
        served.wait()
