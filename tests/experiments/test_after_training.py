"""What a finished or half-finished run is good for: evaluation, another optimizer."""

import json

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.trainer import loop
from tests.experiments.test_train import read

WORDS = {"train__steps": 10, "train__ema_decay": 0.9, "train__checkpoint_every": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    """A run of ten steps that was looked into: traced, every fourth step in layers."""
    folder = tmp_path_factory.mktemp("after") / "run"
    config = small(**WORDS, train__diagnostics_every=4)
    assert loop.train(config, str(folder), profile=True) == 0
    return folder


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_parameters_alone_are_evaluated_under_any_optimizer(finished, small, capsys):
    before = contents(finished)
    config = small(optimizer__name="cosmos", **WORDS)
    assert loop.evaluate(config, str(finished)) == 0
    found = json.loads(capsys.readouterr().out)
    last = read(finished)[0][-1]
    np.testing.assert_allclose(found["val_loss"], last["val_loss"], rtol=1e-6)
    assert found["step"] == 10
    assert contents(finished) == before


def test_the_average_of_the_weights_is_evaluated_too(finished):
    records = [r for r in read(finished)[0] if "val_loss" in r]
    # With losses that fall, an average lags behind.
    assert records[-1]["val_loss_ema"] > records[-1]["val_loss"] + 0.01


def test_nothing_to_evaluate_is_one_line(tmp_path, small):
    with pytest.raises(UserError, match="holds no checkpoint"):
        loop.evaluate(small(), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_layers_and_a_trace_are_on_record(finished):
    records = read(finished)[0]
    looked = [r["step"] for r in records if "layer_update_ratio" in r]
    assert looked == [4, 8]
    names = set(records[3]["layer_update_ratio"])
    assert {"embed", "layers/mlp/gate/0", "layers/mlp/gate/1"} <= names
    assert set(records[3]["largest_attention_logit"]) == {"layers/0", "layers/1"}
    assert 0 < records[3]["largest_output_logit"]["logits"] < 100
    assert list((finished / "profile").rglob("*.xplane.pb"))
    log = (finished / "log.txt").read_text()
    assert "memory: parameters 136 kB, optimizer state 272 kB" in log


def test_an_optimizer_is_not_reset_where_nothing_goes_on(finished, small, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    # A run that stopped before its first checkpoint.
    text = (finished / "config.json").read_text()
    (tmp_path / "begun" / "config.json").write_text(text)
    for name, said in (
        ("none", "there is no .*/none to go on with"),
        ("empty", "empty holds no run to go on with"),
        ("begun", "begun holds no checkpoint to go on with"),
    ):
        with pytest.raises(UserError, match=f"--reset_optimizer: .*{said}"):
            loop.train(
                small(**WORDS, optimizer__name="lion"),
                str(tmp_path / name),
                reset_optimizer=True,
            )
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    left = {str(path) for path in left if path.name != ".lock"}
    assert left == {"empty", "begun", "begun/config.json"}


def test_another_optimizer_goes_on_where_the_parameters_are(finished, small):
    words = WORDS | {"optimizer__name": "lion", "optimizer__learning_rate": 1e-3}
    with pytest.raises(UserError, match="--reset_optimizer"):
        loop.train(small(**words), str(finished))
    words["train__steps"] = 13
    before = read(finished)[0]
    assert loop.train(small(**words), str(finished), reset_optimizer=True) == 0
    records, result = read(finished)
    assert records[:10] == before
    assert [r["step"] for r in records[10:]] == [11, 12, 13]
    assert abs(records[10]["loss"] - before[-1]["loss"]) < 0.5
    assert result["steps"] == 13
    assert "the optimizer starts afresh" in (finished / "log.txt").read_text()
    # Now it is the new optimizer's run.
    assert loop.train(small(**words), str(finished)) == 0
