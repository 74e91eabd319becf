"""Sweeps stopped at work, with what they stop being `experiments.train` itself."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from experiments import points
from experiments.launchers import LAUNCHERS, job, slurm
from experiments.launchers.board import last_record
from experiments.launchers.running import Sweep
from experiments.launchers.storage import Storage, of_file
from experiments.launchers.trials import Trials
from tests.helpers.servers import eventually
from tests.helpers.trials import recorded

RATE = "optimizer.learning_rate"
STEPS = 200


def written(folder, **part):
    """A sweep file of small runs, with a record of every step."""
    path = folder / "swept.py"
    given = {
        "config": "configs/digits.py",
        "overrides": {
            "train.steps": STEPS,
            "train.eval_every": STEPS,
            "train.checkpoint_every": 0,
            "train.max_bad_steps": 1,
        },
    }
    path.write_text(f"def get_sweep():\n    return {given | part!r}\n")
    return str(path)


def workers(folder):
    """Process -> folder of those that train below a folder."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            mine = [word for word in words if word.startswith(f"--workdir={folder}/")]
            if "experiments.train" in words and mine:
                found[int(path.parent.name)] = pathlib.Path(mine[0].partition("=")[2])
    return found


def steps(folder):
    """The steps of a run's records, as often as they are there."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines]


def hold_at_work(folder, count):
    """Halts so many workers, each once it has a record."""
    held = set()

    def halted():
        for pid, mine in workers(folder).items():
            if len(held) < count and pid not in held and last_record(mine):
                os.kill(pid, signal.SIGSTOP)
                held.add(pid)
        return len(held) == count

    eventually(halted, seconds=240)
    return held


def test_a_stopped_and_killed_sweep_loses_no_point_and_does_none_twice(tmp_path):
    """Ctrl-C, then -9 for the launcher and a worker, while the other worker goes on."""
    path = written(tmp_path, axes={RATE: [0.001, 0.003, 1e30]})
    workdir = tmp_path / "w"
    words = [
        *(sys.executable, "-m", "experiments.sweep", f"--sweep={path}"),
        *(f"--workdir={workdir}", "--launcher=local", "--workers=2"),
    ]
    options = {
        "env": os.environ | {"JAX_PLATFORMS": "cpu"},
        "stdout": subprocess.PIPE,
        "text": True,
    }
    wanted = points.load(path)
    with subprocess.Popen(words, **options, start_new_session=True) as launcher:
        held = hold_at_work(workdir, 2)
        os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
        assert "stopping 2 points" in launcher.stdout.readline()
        for pid in held:
            os.kill(pid, signal.SIGCONT)
        assert launcher.wait() == 130
    assert not workers(workdir)
    stopped = [steps(workdir / point.name) for point in wanted[:2]]
    for point, done in zip(wanted[:2], stopped, strict=True):
        assert done == list(range(1, len(done) + 1))
        assert 1 <= len(done) < STEPS
        result = json.loads((workdir / point.name / "result.json").read_text())
        assert (result["reason"], result["steps"]) == ("preempted", len(done))
        kept = [p.name for p in (workdir / point.name / "checkpoints").iterdir()]
        assert str(len(done)) in kept

    with subprocess.Popen(words, **options) as launcher:
        victim, _ = eventually(lambda: len(w := workers(workdir)) == 2 and w, 240)
        launcher.kill()
    os.kill(victim, signal.SIGKILL)
    done = subprocess.run(words, stderr=subprocess.STDOUT, check=False, **options)
    assert done.returncode == 0, done.stdout
    assert "2 completed, 1 diverged; best" in done.stdout
    assert not workers(workdir)

    trials = recorded(of_file(workdir / "optuna.db"))
    assert [state for state, *_ in trials] == ["COMPLETE"] * 3
    trained = sorted(point for _, point, _ in trials)
    assert trained == sorted(point.name for point in wanted)
    for point, before in zip(wanted[:2], stopped, strict=True):
        assert steps(workdir / point.name) == list(range(1, STEPS + 1))
        log = (workdir / point.name / "worker.log").read_text()
        assert f"goes on after step {len(before)}" in log
    assert job.finished(workdir / wanted[2].name)["reason"] == "diverged"
    # The rate is no part of the program: three of them compile one training step.
    assert len(list((workdir / "compiled").glob("jit_step-*-cache"))) == 1


@pytest.mark.usefixtures("cluster", "own_files")
def test_slurm_requeues_a_training_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_SECONDS_BETWEEN_QUERIES", 1.0)
    """Model, data and optimizer are those of a file outside the checkout."""
    workdir = tmp_path / "w"
    workdir.mkdir()
    own = shutil.copy("docs/examples/own_model.py", tmp_path)
    wanted = points.load(written(tmp_path, config=own, axes={RATE: [0.001, 0.003]}))
    storage = of_file(workdir / "optuna.db")
    options = {"attempts": 1, "anew": False}
    trials = Trials(Storage(storage), "swept", wanted, workdir, **options)
    launcher = LAUNCHERS["slurm"](2, workdir, {"time": 5})
    current = Sweep(wanted, workdir, trials, launcher)
    look, requeued = current._look, {}

    def look_and_requeue():
        """Sends the first job that works back to the queue, once."""
        if not requeued:
            (pid,) = hold_at_work(workdir, 1)  # until SLURM ends it
            name = workers(workdir)[pid].name
            requeued[name] = current.jobs[name]._job.job_id
            subprocess.run(["scontrol", "requeue", requeued[name]], check=True)
        for number in requeued.values():  # SLURM would let it wait for two minutes
            subprocess.run(
                ["scontrol", "update", f"JobId={number}", "StartTime=now"],
                check=False,
                capture_output=True,
            )
        look()

    monkeypatch.setattr(current, "_look", look_and_requeue)
    assert current.run() == 0
    assert [state for state, *_ in recorded(storage)] == ["COMPLETE"] * 2
    for point in wanted:
        assert steps(workdir / point.name) == list(range(1, STEPS + 1))
        log = (workdir / point.name / "worker.log").read_text()
        # There are no checkpoints but the one that was written when SLURM stopped it.
        assert ("preempted after" in log) == (point.name in requeued)
        assert ("goes on after step" in log) == (point.name in requeued)
