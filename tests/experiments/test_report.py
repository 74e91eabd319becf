import csv
import json
import math

import pytest

from experiments import config as configs
from experiments import report
from experiments.reporting import (
    figures,
    methods,
    spikes,
    tables,
)
from tests.helpers.synthetic_runs import run


def test_the_numbers_are_those_worked_out_by_hand(runs):
    (sgd, adamw), base = methods.compare(runs)
    assert [sgd.name, adamw.name] == ["sgd, cosine", "adamw, cosine"]
    assert base.name == adamw.name
    assert (adamw.rate, sgd.rate) == (0.2, 0.1)
    assert adamw.loss == pytest.approx(2.1)
    assert adamw.spread == pytest.approx(math.sqrt(0.02))  # 2 * 0.1**2 / (2 - 1)
    assert sgd.spread is None
    # To 2.1: SGD at step 20, after 10 seconds; one of AdamW's seeds never.
    assert (sgd.steps_to, sgd.seconds_to) == (20, 10.0)
    assert adamw.steps_to is None
    # Means of 3, 2 (of the seed that all have) and 5 (7 is above the start), and of 1.9
    # and 5, less the least.
    assert adamw.sensitivity == pytest.approx((3 + 2 + 5) / 3 - 2)
    assert sgd.sensitivity == pytest.approx((1.9 + 5) / 2 - 1.9)
    assert (adamw.diverged, sgd.diverged) == (0, 1)
    assert adamw.state_bytes == 5_000_000
    assert adamw.step_seconds == 0.5
    (_, adamw), base = methods.compare(runs, "sgd")
    assert base.name == "sgd, cosine"
    assert adamw.steps_to is None
    with pytest.raises(configs.UserError, match=r"--baseline: given 'sdg'"):
        methods.compare(runs, "sdg")


def test_a_seed_that_diverged_makes_a_rate_the_worst(tmp_path):
    run(tmp_path, "adamw", 0.1, [3.0])
    run(tmp_path, "adamw", 0.2, [1.0])
    run(tmp_path, "adamw", 0.2, [4.0], seed=1, reason="diverged")
    run(tmp_path, "adamw", 0.4, [0.5], reason="interrupted")
    (adamw,), _ = methods.compare(report.load_runs([tmp_path]))
    assert adamw.rate == 0.1
    assert adamw.loss == 3.0
    assert adamw.sensitivity == pytest.approx((3 + (1 + 5) / 2) / 2 - 3)
    everything = report.table(report.load_runs([tmp_path]))
    assert [row["ended"] for row in everything].count("interrupted") == 1


def test_rates_are_compared_by_the_seeds_that_all_have(tmp_path):
    run(tmp_path, "adamw", 0.1, [3.0])
    run(tmp_path, "adamw", 0.2, [2.0])
    run(tmp_path, "adamw", 0.2, [3.6], seed=1)
    run(tmp_path, "adamw", 0.2, [3.7], seed=2)
    run(tmp_path, "adamw", 0.4, [4.0])
    run(tmp_path, "adamw", 0.8, [1.0])
    run(tmp_path, "adamw", 0.8, [1.0], seed=1, reason="diverged")
    found, _ = methods.compare(report.load_runs([tmp_path]))
    (adamw,) = found
    # Of 0.2's seeds that of the others is the best; what is reported is their mean.
    assert adamw.rate == 0.2
    assert adamw.loss == pytest.approx((2 + 3.6 + 3.7) / 3)
    # At 0.8 the mean of 1 and the start's 5: both of its runs count.
    assert adamw.sensitivity == pytest.approx((3 + 2 + 4 + 3) / 4 - 2)
    drawn = figures.figure(lambda axes: figures.draw_rates(axes, found))
    lines = {line.get_gid(): line for line in drawn.axes[0].lines}
    line = dict(zip(*lines["m0--rates-line"].get_data(), strict=True))
    assert min(line, key=line.get) == adamw.rate
    assert line == pytest.approx({0.1: 3, 0.2: 2, 0.4: 4, 0.8: math.nan}, nan_ok=True)
    assert sorted(lines["m0--rates-runs"].get_ydata()) == [1, 2, 3, 3.6, 3.7, 4]


def test_methods_differ_in_what_varies_beside_rates_and_seeds(tmp_path):
    run(tmp_path, "cosmos", 0.1, [3.0], rank=8)
    run(tmp_path, "cosmos", 0.2, [3.0], rank=16, gamma=0.2)
    run(tmp_path, "adamw", 0.2, [3.0], b1=0.9)
    names = {r.name for r in report.load_runs([tmp_path, tmp_path])}
    assert names == {
        "adamw, cosine",
        "cosmos, cosine, rank=8",
        "cosmos, cosine, gamma=0.2, rank=16",
    }


def test_two_values_that_are_off_are_both_said(tmp_path):
    for i, value in enumerate((None, False, True)):
        run(tmp_path, "cosmos", 0.1 * (i + 1), [3.0], nesterov=value)
    assert {r.name for r in report.load_runs([tmp_path])} == {
        f"cosmos, cosine, nesterov={value}" for value in (None, False, True)
    }


def test_a_run_from_before_a_field_has_its_default(tmp_path):
    run(tmp_path, "adamw", 0.1, [3.0])
    newer = run(tmp_path, "adamw", 0.2, [3.0]) / "config.json"
    config = json.loads(newer.read_text())
    config["config"]["model"] = {"unroll": False}
    newer.write_text(json.dumps(config))
    assert {r.name for r in report.load_runs([tmp_path])} == {"adamw, cosine"}
    config["config"]["model"]["unroll"] = True
    newer.write_text(json.dumps(config))
    assert {r.name for r in report.load_runs([tmp_path])} == {
        "adamw, cosine",
        "adamw, cosine, unroll=True",
    }


def test_all_files_are_written(runs, tmp_path):
    folder = tmp_path / "report"
    assert report.write_report(runs, folder) == folder / "losses.png"
    names = [
        "loss_steps",
        "loss_tokens",
        "loss_seconds",
        "rates",
        "memory",
        "schedules",
    ]
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.svg").read_text().startswith("<svg")
    lines = (folder / "results.md").read_text().splitlines()
    assert lines[2] == (
        "| sgd, cosine | 0.1 (lowest tried) | 1.9000 | - | 1.9000 | 20 | 10.0 "
        "| 3,000,000 | 500.0 | 1.550 | 2, 1 diverged |"
    )
    assert lines[3] == (
        "| adamw, cosine | 0.2 | 2.1000 | 0.1414 | 2.1000 | - | - | 5,000,000 | 500.0 "
        "| 1.333 | 4 |"
    )
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    lost = [row for row in rows if row["reason"] == "diverged"]
    assert [(row["optimizer"], row["learning_rate"]) for row in lost] == [
        ("sgd", "1.0")
    ]
    assert lost[0]["val_loss"] == ""
    # Again, to the byte.
    before = (folder / "rates.svg").read_text()
    report.write_report(runs, folder)
    assert (folder / "rates.svg").read_text() == before


def test_figures_mark_what_diverged(runs):
    found, _ = methods.compare(runs)
    drawn = figures.figure(lambda axes: figures.draw_rates(axes, found))
    lines = {line.get_gid(): line for line in drawn.axes[0].lines}
    lost = lines["m0--rates-lost"]
    assert list(lost.get_xdata()) == [1.0]
    assert lost.get_ydata()[0] > 5.0  # above every loss that counts
    # AdamW's loss at 0.4 is above that of the start.
    assert list(lines["m1--rates-lost"].get_xdata()) == [0.4]
    drawn = figures.figure(lambda axes: figures.draw_losses(axes, found, "seconds"))
    line = drawn.axes[0].lines[1]
    assert list(line.get_xdata()) == [5.0, 10.0, 15.0]
    assert list(line.get_ydata()) == pytest.approx([4.0, 2.65, 2.1])


def test_a_study_is_as_good_as_its_first_trial_to_get_there(tmp_path):
    run(tmp_path, "adamw", 0.1, [4.0, 3.0, 2.0], b1=0.8)
    for seed, (first, second) in enumerate([(2.5, 1.5), (1.9, 2.5), (2.5, 2.6)]):
        run(tmp_path, "lion", 0.1, [3.0, first, first], seed=seed, b1=0.8)
        run(tmp_path, "lion", 0.2, [3.0, second, second], seed=seed, b1=0.9)
    run(tmp_path, "lion", 0.3, [1.0, 1.0, 1.0], seed=1, b1=0.9, pace=4.0)
    runs = report.load_runs([tmp_path], ["optimizer.kwargs.b1"])
    found, base = methods.compare(runs)
    assert [method.name for method in found] == ["lion, cosine", "adamw, cosine"]
    # To 2.0: after 20 and 10 steps, and never. The second study's trial of 10 steps
    # takes 40 seconds, its other one 20 steps of half a second.
    assert methods.reached_by_study(found[0], 2.0, "step") == 20
    assert methods.reached_by_study(found[0], 2.0, "seconds") == 10.0
    assert methods.reached_by_study(found[0], 0.5, "step") is None
    rows = tables.methods_table(found, base, studies=True)
    assert rows[0]["steps, median of studies"] == ("20", 20)
    assert rows[0]["seconds, median of studies"] == ("10.0", 10.0)


def test_recovery_from_spikes_is_worked_out_by_hand(tmp_path):
    folder = run(tmp_path, "adamw", 0.1, [1.0])
    config = json.loads((folder / "config.json").read_text())
    config["config"]["faults"] = {"spike_every": 20, "spike_scale": 1e3}
    (folder / "config.json").write_text(json.dumps(config))
    # Level 2 up to the spike of step 20; then 5, and 1 from the seventh step on, so
    # that the means of five are 4.2, 3.4, 2.6, 1.8 from the third to the sixth.
    losses = [2.0] * 20 + [5.0] * 6 + [1.0] * 14 + [9.0] * 10
    records = [
        {"step": i, "loss": loss, "step_seconds": 0.1, "seconds": 0.1, "tokens": i}
        | {"learning_rate": {"learning_rate": 0.1 * i / 50}}
        for i, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    found, base = methods.compare(report.load_runs([tmp_path]))
    since, level = next(spikes.around(found[0].tuned[0]))
    assert level == 2.0
    assert (since[0], since[1], since[7]) == (2.0, 5.0, 1.0)
    assert spikes.steps_to_recover(since, level) == 6
    # The second spike, at step 40, is not recovered from; of two the worse counts.
    assert spikes.recovery(found[0]) == math.inf
    (row,) = tables.methods_table(found, base)
    assert row["steps to recover"] == ("not", math.inf)
    made = figures.drawings(found)
    line = figures.figure(made["spikes"][1]).axes[0].lines[0]
    rises = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert rises[0] == 0
    assert rises[1] == pytest.approx((3 + 8) / 2)
    line = figures.figure(made["schedules"][1]).axes[0].lines[0]
    assert list(line.get_ydata())[::49] == pytest.approx([0.02, 1.0])


def test_a_method_without_an_end_is_shown(tmp_path):
    folder = run(tmp_path, "adamw", 0.1, [])
    (folder / "result.json").unlink()
    run(tmp_path, "sgd", 0.1, [4.0], reason="diverged")
    found = report.load_runs([tmp_path])
    report.write_report(found, tmp_path / "report")
    lines = (tmp_path / "report" / "results.md").read_text().splitlines()
    assert "| adamw, cosine | 0.1 | - |" in lines[2]
    assert "| sgd, cosine | 0.1 | diverged |" in lines[3]


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(configs.UserError, match="no run"):
        report.load_runs([tmp_path])
    folder = run(tmp_path, "adamw", 0.1, [1.0])
    (folder / "config.json").write_text("{")
    with pytest.raises(configs.UserError, match="is no whole run"):
        report.load_runs([tmp_path])
