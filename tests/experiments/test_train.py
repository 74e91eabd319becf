import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments import demo, report
from experiments.data import stdlib
from experiments.trainer import loop
from tests.experiments.conftest import small_arguments
from tests.helpers.servers import eventually


def read(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    return [json.loads(line) for line in lines], result


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    """A completed COSMOS run of 20 steps."""
    folder = tmp_path_factory.mktemp("run") / "cosmos"
    config = small(
        optimizer__name="cosmos",
        optimizer__kwargs__rank=8,
        optimizer__adam_learning_rate=0.02,
        model__z_loss=1e-4,
    )
    changed = {"optimizer.kwargs.rank": 8}
    assert loop.train(config, str(folder), overrides=changed) == 0
    return folder, config


def test_the_loss_falls_and_every_record_is_whole(finished):
    folder, _ = finished
    records, result = read(folder)
    assert [record["step"] for record in records] == list(range(1, 21))
    first, last = records[0], records[-1]
    assert abs(first["loss"] - np.log(256)) < 1.5
    assert last["loss"] < first["loss"] - 1
    for record in records:
        assert record["tokens"] == record["step"] * 8 * 16
        assert set(record["learning_rate"]) == {"learning_rate", "adam_learning_rate"}
        assert record["grad_norm"] > 0
        assert record["update_rms"] > 0
        assert record["z_loss"] > 0
        assert record["tokens_per_second"] * record["step_seconds"] == pytest.approx(
            128
        )
    assert [r["step"] for r in records if "val_loss" in r] == [10, 20]
    assert result["val_loss"] == last["val_loss"]
    assert result["best_val_loss"] == min(
        r["val_loss"] for r in records if "val_loss" in r
    )
    assert result["steps"] == 20
    assert result["reason"] == "completed"
    assert result["seconds"] == pytest.approx(sum(r["step_seconds"] for r in records))
    # COSMOS: momentum, basis, Gram matrix, second moment; Adam elsewhere; two counts.
    attention, mlp = (32 * 32 + 2 * 32 * 8 + 64), (32 * 48 + 8 * (32 + 48) + 64)
    others = 2 * (2 * 256 * 32 + 32 + 2 * 2 * 32)
    assert result["optimizer_state_bytes"] == 4 * (
        2 * (4 * attention + 3 * mlp) + others + 2
    )
    assert result["peak_memory_bytes"] > result["optimizer_state_bytes"]
    log = (folder / "log.txt").read_text()
    assert "layers/mlp/gate" in log
    assert "step 20/20" in log
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("norm", "field"), [("l1", "grad_norm_l1"), ("l2", "grad_norm")]
)
def test_a_schedule_is_refined_from_the_run(finished, norm, field):
    folder, _ = finished
    norms = [record[field] for record in read(folder)[0]]
    t = np.arange(21)
    expected = optlab.refined_schedule(norms, 0.5, norm=norm)(t)
    found = optlab.refined_schedule(folder / "metrics.jsonl", 0.5, norm=norm)(t)
    np.testing.assert_array_equal(found, expected)
    # Not one norm under two names: l2 <= l1 <= sqrt(size) l2, and far from either end.
    assert all(20 * r["grad_norm"] < r["grad_norm_l1"] for r in read(folder)[0])


def test_the_config_is_recorded_with_where_it_ran(finished):
    folder, config = finished
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["config"] == config.to_dict()
    assert recorded["overrides"]["optimizer.kwargs.rank"] == 8
    assert recorded["data_digest"] == stdlib.load().digest
    assert recorded["packages"]["jax"]
    assert recorded["devices"]
    assert len(recorded["git_commit"] or "0" * 40) == 40


def test_a_completed_run_is_left_alone(finished, capsys):
    folder, config = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert loop.train(config, str(folder)) == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_config_is_refused_by_the_field_that_changed(finished):
    folder, config = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other = config.copy_and_resolve_references()
    other.optimizer.weight_decay = 0.3
    with pytest.raises(
        configs.UserError, match=r"optimizer\.weight_decay=0\.1, not 0\.3"
    ):
        loop.train(other, str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_same_seed_gives_the_same_losses(small, tmp_path):
    losses = {}
    for name, changes in {"a": {}, "b": {}, "c": {"seed": 1}}.items():
        config = small(train__steps=4, **changes)
        assert loop.train(config, str(tmp_path / name)) == 0
        losses[name] = [record["loss"] for record in read(tmp_path / name)[0]]
    assert losses["a"] == losses["b"]
    assert losses["a"] != losses["c"]


def test_divergence_stops_the_run_and_says_where(small, tmp_path):
    config = small(
        optimizer__name="sgd", optimizer__learning_rate=1e30, train__max_bad_steps=3
    )
    assert loop.train(config, str(tmp_path)) == 3
    records, result = read(tmp_path)
    assert result["reason"] == "diverged"
    assert records[-1]["bad_steps"] == 3
    assert records[-1]["loss"] is None or records[-1]["grad_norm"] is None
    assert "is not finite, skipped (3 in a row)" in (tmp_path / "log.txt").read_text()
    # It is no result to build on; --overwrite starts again.
    with pytest.raises(configs.UserError, match="that diverged"):
        loop.train(config, str(tmp_path))
    good = small(train__steps=2)
    assert loop.train(good, str(tmp_path), overwrite=True) == 0
    assert read(tmp_path)[1]["steps"] == 2


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "preempted")],
)
def test_a_signal_ends_the_run_in_order(tmp_path, number, status, reason):
    folder = tmp_path / "run"
    words = [
        *(sys.executable, "-m", "experiments.train", "--config=configs/stdlib_lm.py"),
        *(f"--workdir={folder}", *small_arguments(train__steps=900_000)),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        try:
            records = folder / "metrics.jsonl"
            eventually(
                lambda: (
                    run.poll() is not None
                    or (records.exists() and records.stat().st_size)
                )
            )
            assert run.poll() is None
            if number == signal.SIGINT:  # once is enough: a second run on the folder
                second = subprocess.run(
                    words, capture_output=True, text=True, env=environment, check=False
                )
                assert second.returncode == 4
                assert "is in use" in second.stderr
                assert len(second.stderr.splitlines()) == 1
            run.send_signal(number)
            _, said = run.communicate(timeout=900)
        finally:
            run.kill()
    assert run.returncode == status
    assert "Traceback" not in said
    records, result = read(folder)
    assert result["reason"] == reason
    assert result["steps"] == records[-1]["step"]
    assert (folder / "checkpoints" / str(result["steps"])).is_dir()


def test_a_folder_that_cannot_be_is_one_line(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(configs.UserError, match=r"Not a directory|File exists"):
        loop.train(small(), str(tmp_path / "file"))
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "metrics.jsonl").write_text("")
    with pytest.raises(configs.UserError, match="without the config"):
        loop.train(small(), str(tmp_path / "part"))


def test_the_demo_compares_and_is_not_run_twice(tmp_path, capsys, monkeypatch):
    pairs = {("adamw", "cosine"): 0.01, ("cosmos", "uba"): 0.01}
    assert pairs.keys() < demo.RATES.keys()
    monkeypatch.setattr(demo, "RATES", pairs)
    overrides = small_arguments(train__steps=6, train__eval_every=2)
    assert demo.compare(tmp_path, overrides) == 0
    figure = tmp_path / "report" / "losses.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert f"figure: {figure}" in capsys.readouterr().out
    table = (tmp_path / "report" / "results.md").read_text().splitlines()
    assert len(table) == 4
    rows = {row.split(" | ")[0] for row in table[2:]}
    assert rows == {"| adamw, cosine", "| cosmos, uba"}
    records = tmp_path / "adamw-cosine" / "metrics.jsonl"
    written = records.stat().st_mtime_ns
    assert demo.compare(tmp_path, overrides) == 0
    assert records.stat().st_mtime_ns == written
    # An unfinished or an older run is replaced.
    (records.parent / "result.json").unlink()
    assert demo.compare(tmp_path, overrides) == 0
    assert len(report.load_runs([records.parent])[0].records) == 6


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(configs.UserError, match="no run"):
        report.load_runs([tmp_path])
