"""More steps for a run that is finished: what may be, what is refused, what is told."""

import errno
import json

import numpy as np
import pytest

from experiments import schedules, train
from experiments.errors import UserError
from experiments.trainer import loop
from experiments.trainer.extension import extension
from experiments.trainer.metrics import MetricsWriter


def read(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    return [json.loads(line) for line in lines], result


def extended(config, folder, **options):
    assert loop.train(config, str(folder), extend=True, **options) == 0
    return read(folder)


def test_a_run_gets_more_steps_twice(small, tmp_path, monkeypatch):
    def config(steps, **changes):
        fields = {"schedule__warmup_fraction": 0, "schedule__name": "constant"}
        return small(train__steps=steps, train__eval_every=4, **(fields | changes))

    run, whole = tmp_path / "run", tmp_path / "whole"
    assert loop.train(config(4), str(run)) == 0
    with pytest.raises(UserError, match=r"train\.steps=4, not 8; .* or --extend"):
        loop.train(config(8), str(run))

    write = MetricsWriter.write

    def fails_once(writer, record):
        monkeypatch.setattr(MetricsWriter, "write", write)
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(MetricsWriter, "write", fails_once)
    with pytest.raises(UserError, match="No space left"):
        extended(config(8), run)
    # The run goes on with the extension that was begun, asked for again or not.
    assert loop.train(config(8), str(run)) == 0
    _, result = read(run)
    first = {"after_step": 4, "from_steps": 4, "to_steps": 8}
    assert result["extensions"] == [first | {"same_past": True, "changed": {}}]
    # The decay lies ahead: the steps that were made had the same rates.
    decay = {"schedule__name": "wsd", "schedule__kwargs__decay_fraction": 0.25}
    longest = config(12, **decay)
    records, result = extended(longest, run)
    assert (result["reason"], result["steps"]) == ("completed", 12)
    assert [x["to_steps"] for x in result["extensions"]] == [8, 12]
    assert result["extensions"][1]["changed"]["schedule.name"] == ["constant", "wsd"]
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["extensions"] == result["extensions"]
    marks = {x["step"]: x["extended_after"] for x in records if "extended_after" in x}
    assert marks == {5: 4, 9: 8}
    assert "extended after step 8, from 8 to 12 steps" in (run / "log.txt").read_text()
    assert loop.train(longest, str(whole)) == 0
    straight, _ = read(whole)
    for field in ("step", "learning_rate"):
        assert [x[field] for x in records] == [x[field] for x in straight]
    for field in ("loss", "grad_norm"):
        # The first eight steps are another program's: its rate is a constant.
        np.testing.assert_allclose(
            [x[field] for x in records], [x[field] for x in straight], rtol=1e-6
        )
    # The same command again: there is nothing to do, and the history stays.
    before = (run / "result.json").read_text()
    extended(longest, run)
    assert (run / "result.json").read_text() == before


def test_another_past_is_refused_or_asked_for(small, tmp_path):
    run = tmp_path / "run"
    assert loop.train(small(train__steps=4), str(run)) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for changes, part in (
        ({"train__steps": 8}, r"--extend: .* step 2 .*pass --change_schedule to take"),
        ({"train__steps": 4, "schedule__name": "constant"}, "more than the 4 of"),
        ({"train__steps": 3}, "train.steps=3, allowed more than the 4"),
        ({"train__steps": 8, "seed": 1}, r"seed=0, not 1"),
        ({"train__steps": 8, "optimizer__name": "lion"}, r"optimizer\.name='adamw'"),
    ):
        with pytest.raises(UserError, match=part) as caught:
            extended(small(**changes), run)
        assert str(caught.value).isprintable()
    with pytest.raises(UserError, match=r"there is no .*/none to"):
        extended(small(), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run to go on with"):
        extended(small(), tmp_path / "empty")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    records, result = extended(small(train__steps=8), run, change_schedule=True)
    assert result["extensions"][0]["same_past"] is False
    assert (result["reason"], len(records)) == ("completed", 8)
    rates = [x["learning_rate"]["learning_rate"] for x in records]
    assert rates[3] < rates[4]  # the old cosine ended there, the new one has half to go


def test_a_warm_up_keeps_its_steps():
    fields = {
        **{"schedule.name": "constant", "schedule.warmup_fraction": 0.29},
        "train.steps": 100,
    }
    longer = fields | {"train.steps": 300}
    with pytest.raises(UserError) as caught:
        extension(fields, longer, 100, change_schedule=False)
    said = str(caught.value)
    number = said.partition("schedule.warmup_fraction=")[2].partition(" ")[0]
    assert "to keep the 29 steps" in said
    longer["schedule.warmup_fraction"] = float(number)
    assert extension(fields, longer, 100, change_schedule=False)["same_past"]
    # Many steps, and the first that differs among them.
    wsd = fields | {"schedule.name": "wsd", "schedule.warmup_fraction": 0.0}
    old = wsd | {"train.steps": 200_000, "schedule.kwargs.decay_fraction": 0.1}
    new = old | {"train.steps": 210_000}
    assert schedules.first_change(old, new, 180_001) is None
    assert schedules.first_change(old, new, 200_000)[0] == 180_002


def test_flags_that_do_not_go_together(given):
    for flags, part in (
        ({"change_schedule": True}, "--change_schedule: only with --extend"),
        ({"extend": True, "overwrite": True}, "--extend: not with --overwrite"),
        ({"extend": True, "evaluate": True}, "--extend: not with --evaluate"),
        ({"extend": True, "reset_optimizer": True}, "not with --reset_optimizer"),
        (
            {"reset_optimizer": True, "overwrite": True},
            "--reset_optimizer: not with --overwrite",
        ),
        *(
            ({"evaluate": True, other: True}, f"--evaluate: not with --{other}")
            for other in ("overwrite", "reset_optimizer", "profile")
        ),
    ):
        given(train._FLAGS, config="configs/digits.py", **flags)
        with pytest.raises(UserError, match=part):
            train.main([], [])
        for name in flags:
            train._FLAGS[name].unparse()
