import io
import json
import math
import pathlib
import signal
import subprocess
from unittest import mock

import numpy as np
import pytest
import rich.console
import submitit

from experiments import config as configs
from experiments import points, sweep
from experiments.launchers import LAUNCHERS, Inline, job, slurm
from experiments.launchers.storage import Storage, of_file
from experiments.launchers.trials import Trials
from experiments.trainer import loop
from tests.helpers import trials as stored

TINY = {
    "config": "configs/digits.py",
    "overrides": {
        "train.steps": 10,
        "train.eval_every": 5,
        "train.checkpoint_every": 0,
    },
}
RATE = "optimizer.learning_rate"
FILES = sorted(pathlib.Path("configs/sweeps").glob("*.py"))


def written(folder, *parts):
    """A sweep file with the given parts, on top of `TINY`."""
    path = folder / "swept.py"
    path.write_text(f"def get_sweep():\n    return {[TINY | p for p in parts]!r}\n")
    return str(path)


def values(path, *fields):
    return [tuple(p.overrides[f] for f in fields) for p in points.load(path)]


def opened(path, workdir, *, anew=False):
    """A sweep with the inline launcher."""
    wanted = points.load(path)
    workdir.mkdir(exist_ok=True)
    storage = Storage(of_file(workdir / "optuna.db"))
    options = {"attempts": sweep.ATTEMPTS, "anew": anew}
    trials = Trials(storage, "swept", wanted, workdir, **options)
    return sweep.Sweep(wanted, workdir, trials, Inline(1, workdir, {}))


def recorded(workdir):
    """State, point, value of all trials."""
    return stored.recorded(of_file(workdir / "optuna.db"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_sweep_file_loads(path):
    found = points.load(str(path))
    assert len({point.name for point in found}) == len(found) > 4
    # The docstring says how many runs there are.
    assert f" {len(found)} runs" in path.read_text()


def test_a_grid_is_every_combination_with_every_seed(tmp_path):
    axes = {RATE: [0.001, 0.002], "optimizer.kwargs.b1": [0.8, 0.9]}
    path = written(tmp_path, {"axes": axes, "seeds": [0, 7]})
    expected = [
        (rate, b1, seed)
        for rate in (0.001, 0.002)
        for b1 in (0.8, 0.9)
        for seed in (0, 7)
    ]
    assert values(path, RATE, "optimizer.kwargs.b1", "seed") == expected


def test_one_axis_at_a_time_goes_through_the_center_once(tmp_path):
    axes = {RATE: [0.001, 0.003, 0.01], "optimizer.kwargs.b1": [0.5, 0.9]}
    path = written(tmp_path, {"axes": axes, "design": "one_at_a_time"})
    # configs/digits.py has 0.003, AdamW's b1 is 0.9.
    expected = [(0.003, 0.9), (0.001, 0.9), (0.01, 0.9), (0.003, 0.5)]
    assert values(path, RATE, "optimizer.kwargs.b1") == expected


def test_halton_points_are_the_sequence(tmp_path):
    axes = {
        RATE: (1e-4, 1e-2, "log"),
        "optimizer.weight_decay": (0.0, 0.9, "linear"),
        "train.batch_size": [10, 20, 50, 100, 150],
    }
    path = written(tmp_path, {"axes": axes, "design": "halton", "trials": 4})
    got = values(path, *axes)
    # Bases 2, 3 and 5: 1/2 1/4 3/4 1/8; 1/3 2/3 1/9 4/9; 1/5 2/5 3/5 4/5.
    rates = [10 ** (-4 + 2 * place) for place in (1 / 2, 1 / 4, 3 / 4, 1 / 8)]
    np.testing.assert_allclose([p[0] for p in got], rates)
    np.testing.assert_allclose([p[1] for p in got], [0.3, 0.6, 0.1, 0.4])
    assert [p[2] for p in got] == [20, 50, 100, 150]


def test_names_are_stable_and_say_what_was_asked(tmp_path):
    path = written(tmp_path, {"axes": {RATE: [0.001, 0.01]}})
    first = points.load(path)
    # The same point, written otherwise and in another order.
    path = written(tmp_path, {"axes": {RATE: [1e-2]}, "seeds": (0,)})
    assert points.load(path)[0].name == first[1].name
    assert len({point.name for point in first}) == 2
    changed = points.load(path, ["--config.train.steps=11"])[0]
    assert changed.name != first[1].name
    assert changed.config.train.steps == 11


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"axis": {}}, r"axis: no such field, allowed config, .*nearest: axes"),
        ({"design": "halten"}, r"design: given 'halten', .*nearest: halton"),
        ({"design": "halton"}, r"trials: given 0"),
        ({"axes": {"train.stps": [3]}}, r"train\.stps: no such field"),
        ({"axes": {RATE: [-1.0]}}, r"optimizer\.learning_rate.*above 0"),
        ({"axes": {RATE: []}}, r"has no points"),
    ],
)
def test_a_wrong_sweep_is_one_line(tmp_path, part, message):
    with pytest.raises(configs.UserError, match=message) as caught:
        points.load(written(tmp_path, part))
    assert "\n" not in str(caught.value)


def test_parts_need_names(tmp_path):
    with pytest.raises(configs.UserError, match="2 parts need one each"):
        points.load(written(tmp_path, {}, {}))
    with pytest.raises(configs.UserError, match=r"no file .*nearest: configs/sweeps/"):
        points.load("configs/sweeps/optimisers.py")


def test_the_dry_run_lists_points_and_cost(tmp_path, stub):
    path = written(tmp_path, {"axes": {RATE: [0.001, 0.01]}})
    wanted = points.load(path)
    # A perceptron: 64 inputs, two layers of 64 more, ten classes.
    parameters = 3 * (64 * 64 + 64) + 64 * 10 + 10
    text = sweep.cost(wanted, tmp_path, 1)
    flops = 6 * parameters * 2 * 10 * 100
    assert text == (
        "2 of 2 points left: 20 steps, 2,000 tokens, "
        f"about {flops:.1e} FLOPs (6 x parameters x tokens)"
    )
    stub(lambda rate: rate)
    loop.train(wanted[0].config, str(tmp_path / wanted[0].name), overrides={})
    done = "1 of 2 points left: 10 steps"
    # Half a second a step.
    assert sweep.cost(wanted, tmp_path, 1).startswith(done)
    assert sweep.cost(wanted, tmp_path, 1).endswith("about 0.0014 hours with 1 workers")


def test_a_sweep_without_a_workdir_has_one_by_its_name(
    tmp_path, monkeypatch, stub, given, capsys
):
    config = str(pathlib.Path("configs/digits.py").absolute())
    path = written(tmp_path, {"axes": {RATE: [0.001, 0.01]}, "config": config})
    stub(lambda rate: rate)
    monkeypatch.chdir(tmp_path)
    given(sweep._FLAGS, sweep=path)
    assert sweep.main([], []) == 0
    assert [state for state, _, _ in recorded(tmp_path / "runs/swept")] == [
        "COMPLETE",
        "COMPLETE",
    ]
    capsys.readouterr()
    given(sweep._FLAGS, dry_run=True)
    assert sweep.main([], []) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in listed[:2]] == ["completed"] * 2
    assert listed[2].startswith("0 of 2 points left")
    assert "runs/NAME" in sweep._FLAGS["workdir"].help


# Six steps and ten are left, of half a second each.
@pytest.mark.parametrize(("workers", "left"), [(1, "0:00:08"), (8, "0:00:04")])
def test_the_table_shows_states_the_best_loss_and_the_time_left(
    tmp_path, monkeypatch, stub, workers, left
):
    monkeypatch.setattr(submitit, "SlurmExecutor", mock.MagicMock())
    stub(lambda rate: rate)
    current = opened(
        written(tmp_path, {"axes": {RATE: [0.001, 0.01, 0.1]}}), tmp_path / "w"
    )
    current.launcher = LAUNCHERS["slurm"](workers, tmp_path, {})
    (done, point), (at_work, _), _ = current.points.items()
    loop.train(point.config, str(tmp_path / "w" / done), overrides={})
    current.results[done] = job.finished(tmp_path / "w" / done)
    current.jobs[at_work] = None
    (tmp_path / "w" / at_work).mkdir()
    record = {"step": 4, "loss": 0.25, "seconds": 9.0}
    (tmp_path / "w" / at_work / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    shown = io.StringIO()
    options = {"force_terminal": True, "color_system": None, "width": 100}
    rich.console.Console(file=shown, **options).print(current.board)
    head, *lines = [
        line.replace("┃", "│").strip("│ \n")
        for line in shown.getvalue().splitlines()
        if line.strip()[0] not in "┏┡└"
    ]
    cells = dict(zip(head.split("│"), lines[0].split("│"), strict=True))
    assert {name.strip(): cell.strip() for name, cell in cells.items()} == {
        "completed": "1",
        "diverged": "0",
        "pruned": "0",
        "failed": "0",
        "running": "1",
        "waiting": "1",
        "time left": left,
    }
    assert lines[1:] == [
        f"best loss 0.0010 at learning_rate=0.001 ({done})",
        f"{at_work}  learning_rate=0.01: step 4/10, loss 0.250",
    ]


def test_finished_points_are_skipped_and_all_is_recorded(tmp_path, stub, capsys):
    path = written(tmp_path, {"axes": {RATE: [0.001, 0.01, 0.1]}})
    names = [point.name for point in points.load(path)]
    calls = stub(lambda rate: math.nan if rate == 0.1 else rate)
    first = opened(path, tmp_path / "w")
    assert first.run() == 0
    first.board.summary()
    said = capsys.readouterr().out
    assert f"{names[2]} (learning_rate=0.1): diverged" in said
    best = f"best 0.0010 at learning_rate=0.001 ({names[0]})"
    assert f"2 completed, 1 diverged; {best}" in said
    assert calls == [0.001, 0.01, 0.1]
    expected = [
        ("COMPLETE", names[0], 0.001),
        ("COMPLETE", names[1], 0.01),
        ("COMPLETE", names[2], math.inf),
    ]
    assert recorded(tmp_path / "w") == expected
    assert opened(path, tmp_path / "w").run() == 0
    assert calls == [0.001, 0.01, 0.1]
    assert recorded(tmp_path / "w") == expected
    # A point more, one less, and a folder that has gone.
    (tmp_path / "w" / names[1] / "result.json").unlink()
    path = written(tmp_path, {"axes": {RATE: [0.01, 0.1, 0.002]}})
    assert opened(path, tmp_path / "w").run() == 0
    assert calls[3:] == [0.01, 0.002]
    done = recorded(tmp_path / "w")
    assert [(state, value) for state, _, value in done[3:]] == [
        ("COMPLETE", 0.01),
        ("COMPLETE", 0.002),
    ]
    # Another storage learns what has been done.
    (tmp_path / "w" / "optuna.db").unlink()
    assert opened(path, tmp_path / "w").run() == 0
    assert len(calls) == 5
    assert sorted(value for _, _, value in recorded(tmp_path / "w")) == [
        0.002,
        0.01,
        math.inf,
    ]


def test_a_failing_point_is_tried_twice_more_and_reported(tmp_path, stub, capsys):
    path = written(tmp_path, {"axes": {RATE: [0.001, 0.01]}})
    bad = points.load(path)[0].name
    broken = True

    def outcome(rate):
        if rate == 0.001 and broken:
            raise RuntimeError("out of luck")
        return rate

    calls = stub(outcome)
    first = opened(path, tmp_path / "w")
    assert first.run() == 1
    first.board.summary()
    assert sorted(calls) == [0.001, 0.001, 0.001, 0.01]
    said = capsys.readouterr().out
    assert f"{bad} (learning_rate=0.001): RuntimeError: out of luck; tried" in said
    assert f"failed: {tmp_path}/w/{bad} (learning_rate=0.001): RuntimeError" in said
    assert "1 completed, 1 failed" in said
    states = [(state, point) for state, point, _ in recorded(tmp_path / "w")]
    assert states.count(("FAIL", bad)) == 3
    # It stays failed until it is to be tried again.
    again = opened(path, tmp_path / "w")
    assert again.run() == 1
    assert len(calls) == 4
    assert again.failed == {bad: "RuntimeError: out of luck"}
    broken = False
    assert opened(path, tmp_path / "w", anew=True).run() == 0
    assert len(calls) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_sweep_and_it_goes_on(tmp_path, stub, number):
    path = written(tmp_path, {"axes": {RATE: [0.001, 0.01, 0.1]}})

    def outcome(rate):
        if rate == 0.01 and len(calls) == 2:
            signal.raise_signal(number)
        return rate

    calls = stub(outcome)
    assert opened(path, tmp_path / "w").run() == 128 + number
    assert calls == [0.001, 0.01]
    assert opened(path, tmp_path / "w").run() == 0
    assert calls == [0.001, 0.01, 0.1]
    assert [state for state, _, _ in recorded(tmp_path / "w")] == ["COMPLETE"] * 3


def test_a_slurm_job_that_left_the_queue_has_failed(tmp_path, monkeypatch):
    class Paths:
        result_pickle = tmp_path / "none"

    class Submitted:
        job_id = "7_0"
        paths = Paths

    listed = ["7_0 PENDING\n7_1 RUNNING\n"]
    answer = subprocess.CompletedProcess([], 0)

    def squeue(*arguments, **options):
        del arguments, options
        answer.stdout = listed[0]
        return answer

    monkeypatch.setattr(slurm.subprocess, "run", squeue)
    monkeypatch.setattr(slurm, "_SECONDS_BETWEEN_QUERIES", -1)
    one = slurm.SlurmJob(Submitted, tmp_path, slurm.Queue())
    assert one.status() is None
    assert not one.at_work()
    listed[0] = "7_0 RUNNING\n7_1 RUNNING\n"
    assert one.status() is None
    assert one.at_work()
    listed[0] = "7_1 RUNNING\n"
    assert one.status() == 1
    answer.returncode = 1  # no answer says nothing
    assert one.status() is None
    (tmp_path / "result.json").write_text('{"reason": "diverged"}')
    assert one.status() == 3
