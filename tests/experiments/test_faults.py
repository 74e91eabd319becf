"""Each fault that a long run meets, made to happen."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments import tasks
from experiments.errors import UserError
from experiments.tasks import LanguageModel
from experiments.trainer import loop
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.metrics import MetricsWriter
from tests.experiments.test_train import read
from tests.helpers import kill_ten_times

# The other cases below, in this process.
KILLED = "cosmos"


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    name, peace, war = KILLED, tmp_path / "peace", tmp_path / "war"
    kill_ten_times.finish(kill_ten_times.command(peace, name))
    # The second one comes while the run starts again. Ten each, and other moments:
    # python -m tests.helpers.kill_ten_times --seed=...
    signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]
    kill_ten_times.killed(war, name, signals, 0, first=20)  # there is a checkpoint
    losses, checksums = kill_ten_times.outcome(war)
    assert [step for step, _ in losses] == list(range(1, kill_ten_times.STEPS + 1))
    assert (losses, checksums) == kill_ten_times.outcome(peace)
    assert read(war)[1]["best_val_loss"] == read(peace)[1]["best_val_loss"]
    assert "goes on after step" in (war / "log.txt").read_text()


@pytest.mark.parametrize("name", [x for x in kill_ten_times.CASES if x != KILLED])
def test_a_run_goes_on_from_what_a_kill_would_leave(tmp_path, monkeypatch, name):
    """A copy made in the middle of a step holds what a kill at that moment leaves."""
    peace, war, steps = tmp_path / "peace", tmp_path / "war", 20
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file, *words = kill_ten_times.arguments(peace, name, steps)
    config = configs.load(file, words)[0]

    def write(writer, record, real=MetricsWriter.write):
        real(writer, record)
        if record["step"] == 17:
            # A checkpoint that is being written may get its name while it is copied.
            with contextlib.suppress(shutil.Error):
                shutil.copytree(peace, war)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write)
        assert loop.train(config, str(peace)) == 0
    with (war / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "lo')
    assert loop.train(config, str(war)) == 0
    losses, checksums = kill_ten_times.outcome(war, steps)
    assert [step for step, _ in losses] == list(range(1, steps + 1))
    assert (losses, checksums) == kill_ten_times.outcome(peace, steps)
    assert re.search("goes on after step (7|14)\n", (war / "log.txt").read_text())


@pytest.fixture(scope="module")
def half(tmp_path_factory, small):
    """A run of 12 steps with checkpoints of 8 and 12, and no result."""
    folder = tmp_path_factory.mktemp("half") / "run"
    config = small(train__steps=12, train__checkpoint_every=4)
    assert loop.train(config, str(folder)) == 0
    (folder / "result.json").unlink()
    return folder, config


@pytest.fixture
def copied(half, tmp_path):
    """A copy of `half`, its config, and its losses."""
    folder, config = half
    shutil.copytree(folder, tmp_path / "run")
    config = config.copy_and_resolve_references()
    return tmp_path / "run", config, losses_of(folder)


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(copied):
    folder, config, losses = copied
    files = [path for path in (folder / "checkpoints" / "12").rglob("d/*")]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    # A kill in the middle of a line, too.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert loop.train(config, str(folder)) == 0
    log = (folder / "log.txt").read_text()
    assert "checkpoint of step 12 is corrupt, set aside" in log
    assert "goes on after step 8" in log
    assert losses_of(folder) == losses
    assert (folder / "checkpoints" / "spoilt_12").is_dir()
    assert read(folder)[1]["reason"] == "completed"


def test_a_run_that_ended_before_its_result_only_writes_it(copied):
    folder, config, losses = copied
    # These may change when a run goes on.
    config.train.log_every = 5
    config.train.checkpoint_every = 3
    assert loop.train(config, str(folder)) == 0
    records, result = read(folder)
    assert losses_of(folder) == losses
    assert result["val_loss"] == records[-1]["val_loss"]
    assert (result["steps"], result["reason"]) == (12, "completed")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("seed", 3, "seed=0, not 3"),
        ("train.steps", 13, "train.steps=12, not 13"),
        ("optimizer.kwargs.b1", 0.5, "optimizer.kwargs.b1=0.9, not 0.5"),
    ],
)
def test_a_changed_config_does_not_go_on(copied, field, value, says):
    folder, config, _ = copied
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=says) as caught:
        loop.train(config, str(folder))
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_changed_data_does_not_go_on(copied):
    folder, config, _ = copied
    recorded = json.loads((folder / "config.json").read_text())
    recorded["data_digest"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="data_digest='000"):
        loop.train(config, str(folder))


@pytest.fixture
def disk(tmp_path):
    """Mounts a separate small disk, and returns how to change it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(words, capture_output=True, check=False).returncode
        ):
            pytest.skip("mounting a tmpfs needs root")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_full_disk_is_one_line_and_the_run_goes_on_with_more(disk, small):
    folder = disk("size=1m") / "run"
    # A checkpoint takes 0.4 MB, and there are two while a third is written.
    config = small(train__steps=12, train__checkpoint_every=2)
    with pytest.raises(UserError, match="No space left on device") as caught:
        loop.train(config, str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    losses = losses_of(folder)
    assert 2 <= len(losses) < 12
    disk("remount,size=64m")
    assert loop.train(config, str(folder)) == 0
    again = losses_of(folder)
    assert len(again) == 12
    assert again[: len(losses)] == losses


def test_a_disk_that_cannot_be_written_is_one_line(disk, small):
    folder = disk("ro")
    with pytest.raises(UserError, match="Read-only file system") as caught:
        loop.train(small(), str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "says"), [("-f 32", "File too large"), ("-n 16", "Too many open files")]
)
def test_a_limit_ends_the_run_with_a_line(tmp_path, limit, says):
    """A limit on the size of files stands for a quota, which root has none of.

    In every case threads of the storage library are left, and would like to say more.
    """
    words = kill_ten_times.command(tmp_path / "run", "lanton")
    run = subprocess.run(
        ["bash", "-c", f'ulimit {limit}; exec "$@"', "-", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 2
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: ") and last.endswith(says)
    if limit == "-f 32":
        assert str(tmp_path / "run") in last


class Spoilt:
    """Batches of which some, counted from 0, are all 255: no text is."""

    def __init__(self, batches, bad):
        self._batches, self._bad = batches, bad
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        at = self._batches.get_state()["next_index"]
        batch = next(self._batches)
        return np.full_like(batch, 255) if at in self._bad else batch


class Poisoned(LanguageModel):
    """The gradient of one leaf is NaN on batches of 255s."""

    bad: tuple[int, ...] = ()

    def loss(self, params, batch, key):
        loss, aux = super().loss(params, batch, key)
        poison = jnp.where(jnp.all(batch == 255), jnp.nan, 0.0)
        return loss + poison * jnp.sum(params["norm"]["scale"]), aux

    def train_iterator(self, seed, process=None):
        return Spoilt(super().train_iterator(seed, process), self.bad)


@pytest.mark.parametrize("steps", [(5, 6), (5, 6, 7)])
def test_a_non_finite_step_is_skipped_and_too_many_stop(
    small, tmp_path, monkeypatch, steps
):
    # The batch of step k is number k - 1; the loss is NaN too, so the leaf is named.
    monkeypatch.setattr(Poisoned, "bad", tuple(step - 1 for step in steps))
    monkeypatch.setitem(tasks.TASKS, "language_model", Poisoned)
    config = small(train__steps=9, train__max_bad_steps=3, train__checkpoint_every=4)
    status = loop.train(config, str(tmp_path))
    records, result = read(tmp_path)
    bad = {r["step"]: r["bad_steps"] for r in records if "bad_steps" in r}
    assert bad == {step: i + 1 for i, step in enumerate(steps)}
    log = (tmp_path / "log.txt").read_text()
    assert "step 6: the gradient of norm/scale is not finite, skipped (2 in a" in log
    if len(steps) == 3:
        assert (status, result["reason"], result["steps"]) == (3, "diverged", 7)
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
        return
    assert (status, result["reason"]) == (0, "completed")
    assert records[-1]["loss"] < records[0]["loss"]
    # Three steps in a row, of which a restart comes after the first.
    shutil.rmtree(tmp_path / "checkpoints" / "9")
    (tmp_path / "result.json").unlink()
    losses = losses_of(tmp_path)
    assert loop.train(config, str(tmp_path)) == 0
    assert "goes on after step 8" in (tmp_path / "log.txt").read_text()
    assert losses_of(tmp_path) == losses


def test_a_failure_is_on_record_and_does_not_end_the_run_for_good(
    small, tmp_path, monkeypatch
):
    config = small(train__steps=4, train__checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(config, str(tmp_path))
    assert read(tmp_path)[1]["reason"] == "failed"
    assert "failed: ZeroDivisionError" in (tmp_path / "log.txt").read_text()
    assert loop.train(config, str(tmp_path)) == 0
    assert [r["step"] for r in read(tmp_path)[0]] == [1, 2, 3, 4]
