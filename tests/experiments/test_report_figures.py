"""What a report shows of many methods, of grids' edges, and of long runs."""

import csv
import itertools
import json
import re
import tracemalloc

import pytest

from experiments import report
from experiments.reporting import figures, methods, tables, thinning
from tests.helpers.synthetic_runs import run


def test_a_best_rate_at_the_edge_is_marked_everywhere(tmp_path):
    for name, losses in {
        "low": [1.0, 2.0, 3.0],
        "high": [3.0, 2.0, 1.5],
        "inside": [3.0, 1.2, 2.0],
    }.items():
        for rate, loss in zip((0.1, 0.2, 0.4), losses, strict=True):
            run(tmp_path, name, rate, [loss])
    run(tmp_path, "single", 0.1, [4.0])  # of no grid
    run(tmp_path, "guarded", 0.2, [3.5])
    run(tmp_path, "guarded", 0.1, [3.6])
    run(tmp_path, "guarded", 0.4, [3.0], reason="diverged")  # has ended, beyond
    run(tmp_path, "cut", 0.1, [4.5])
    run(tmp_path, "cut", 0.2, [4.4])
    run(tmp_path, "cut", 0.4, [1.0], reason="interrupted")  # tells nothing
    runs = report.load_runs([tmp_path])
    found, base = methods.compare(runs)
    names = ["low", "inside", "high", "guarded", "single", "cut"]
    assert [one.name for one in found] == [f"{name}, cosine" for name in names]
    edges = ["lowest", None, "highest", None, None, "highest"]
    assert [one.edge for one in found] == edges
    rows = tables.methods_table(found, base)
    assert [row["rate"] for row in rows] == [
        ("0.1 (lowest tried)", 0.1),
        ("0.2", 0.2),
        ("0.4 (highest tried)", 0.4),
        ("0.2", 0.2),
        ("0.1", 0.1),
        ("0.2 (highest tried)", 0.2),
    ]
    report.write_report(runs, tmp_path / "report")
    assert "| low, cosine | 0.1 (lowest tried) |" in (
        tmp_path / "report" / "results.md"
    ).read_text(encoding="utf-8")
    with (tmp_path / "report" / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    marked = {
        (line["optimizer"], line["learning_rate"]): line["edge_of_grid"]
        for line in lines
        if line["edge_of_grid"]
    }
    assert marked == {
        ("low", "0.1"): "lowest",
        ("high", "0.4"): "highest",
        ("cut", "0.2"): "highest",
    }
    best = [line["optimizer"] for line in lines if line["best_rate"] == "True"]
    assert sorted(best) == sorted(names)
    losses = [float(line["val_loss"]) for line in lines if line["reason"] != "diverged"]
    completed = losses[: len(lines) - 2]
    assert completed == sorted(completed)
    assert [line["reason"] for line in lines[-2:]] == ["interrupted", "diverged"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'class="marked">0.1 (lowest tried)</td>' in page
    assert "the edge of its grid" in page
    axes = figures.figure(figures.drawings(found)["rates"].draw).axes[0]
    edges = {
        line.get_gid(): (*line.get_xdata(), *line.get_ydata(), line.get_marker())
        for line in axes.lines
        if "edge" in line.get_gid()
    }
    assert edges == {
        "m0--rates-edge": (0.1, 1.0, "<"),
        "m2--rates-edge": (0.4, 1.5, ">"),
        "m5--rates-edge": (0.2, 4.4, ">"),
    }
    labels = axes.get_legend_handles_labels()[1]
    assert "best 0.1, lowest tried" in labels[0]


@pytest.mark.parametrize("count", [3, 8, 14])
def test_each_of_many_methods_can_be_told_apart(tmp_path, count):
    for i in range(count):
        for rate in (0.1, 0.2, 0.4):
            run(tmp_path, f"method{i:02}", rate, [3.0, 2 + i / 10 + abs(rate - 0.2)])
    found, _ = methods.compare(report.load_runs([tmp_path]))
    made = figures.drawings(found)
    for parts, lines in (
        ([made["rates"]], {"rates-line"}),
        ([made["loss_steps"], made["loss_seconds"]], {"step-line", "seconds-line"}),
    ):
        figure = figures.draw_all(parts, found)
        if count <= 6:
            assert len(figure.axes) == len(parts)
            assert figures.has_legend(figure)
            continue
        assert len(figure.axes) == count * len(parts)
        assert not figures.has_legend(figure)
        for place, axes in enumerate(figure.axes):
            i = place % count
            # One method in its look and with its name, all others in grey behind it.
            assert axes.get_title().startswith(f"method{i:02}, cosine\n(")
            own = [line for line in axes.lines if line.get_color() != figures.INK]
            assert {line.get_gid().partition("--")[0] for line in own} == {f"m{i}"}
            behind = [line for line in axes.lines if line not in own]
            assert len(behind) == count - 1
            assert max(line.zorder for line in behind) < min(x.zorder for x in own)
            assert {x.get_gid().split("--")[1].split("-of")[0] for x in behind} <= lines
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                width = min(one.x1, other.x1) - max(one.x0, other.x0)
                height = min(one.y1, other.y1) - max(one.y0, other.y0)
                assert min(width, height) < 1  # pixel: no panel's words on another's


def test_accuracy_and_training_loss_are_shown_where_they_are(tmp_path):
    plain = run(tmp_path / "plain", "sgd", 0.1, [3.0, 2.0])
    folder = run(tmp_path / "images", "adamw", 0.1, [3.0, 1.0])
    records = [
        {"step": i, "loss": 5.0 - i / 10, "tokens": i, "seconds": i / 10}
        | ({"val_loss": 5 - i / 10, "val_accuracy": i / 100} if i % 20 == 0 else {})
        for i in range(1, 41)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    runs = report.load_runs([tmp_path])
    found, base = methods.compare(runs)
    rows = tables.methods_table(found, base)
    assert [row["accuracy"] for row in rows] == [("0.4000", 0.4), ("-", None)]
    # Of the last four steps: 5 less 3.7, 3.8, 3.9 and 4.0.
    assert rows[0]["train loss"][0] == "1.1500"
    assert rows[1]["train loss"][0] == "2.0000"
    by_folder = {row["folder"]: row for row in tables.csv_rows(found)}
    assert by_folder[folder.name]["val_accuracy"] == 0.4
    assert by_folder[plain.name]["val_accuracy"] is None
    made = figures.drawings(found)
    axes = figures.figure(made["accuracy"].draw).axes[0]
    assert list(axes.lines[0].get_ydata()) == [0.2, 0.4]
    axes = figures.figure(made["training_loss"].draw).axes[0]
    assert len(axes.lines[0].get_xdata()) == 40
    # A language model has no accuracy: neither column nor figure.
    found, base = methods.compare(report.load_runs([plain]))
    assert "accuracy" not in figures.drawings(found)
    assert "accuracy" not in tables.methods_table(found, base)[0]


def test_the_largest_logits_are_shown_where_they_are(tmp_path):
    for rate, factor in ((0.1, 1), (0.2, 10)):
        name = "adamw"
        run(tmp_path, name, rate, [3.0])
        layers = [{"layers/0": 2.0 * factor, "layers/1": 5.0 * factor}, {"layers/0": 4}]
        with (tmp_path / f"{name}-{rate}-0-0" / "metrics.jsonl").open("a") as file:
            for step, found in enumerate([*layers, {"layers/0": None}, "x"], 20):
                record = {"step": step, "largest_attention_logit": found}
                file.write(json.dumps(record) + "\n")
    runs = report.load_runs([tmp_path])
    report.write_report(runs, tmp_path / "report")
    with (tmp_path / "report" / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    found = {line["learning_rate"]: line["largest_attention_logit"] for line in lines}
    assert found == {"0.1": "5.0", "0.2": "50.0"}
    assert "largest_output_logit" not in lines[0]
    drawn = figures.drawings(methods.compare(runs)[0])
    assert "largest_attention_logit" in drawn and "largest_output_logit" not in drawn
    (line,) = figures.draw_all([drawn["largest_attention_logit"]], []).axes[0].lines
    assert list(line.get_ydata()) == [5.0, 50.0]


def test_what_is_thinned_is_even_nested_and_has_its_ends():
    for most in (2, 5, 8):
        kept = {}
        for count in range(200):
            thinned = thinning.Thinned(most)
            for i in range(count):
                thinned.add(i)
            items = thinned.items()
            kept[count] = items
            assert len(items) <= most + 1
            assert items[:1] == [0][:count]
            assert items[-1:] == [count - 1][:count]
            steps = {b - a for a, b in itertools.pairwise(items[:-1])}
            assert len(steps) <= 1
            assert count < most or len(items) >= most // 2
        assert set(kept[150][:-1]) <= set(kept[80]) | set(range(80, 150))


def test_a_long_run_keeps_few_records(tmp_path):
    folder = run(tmp_path, "adamw", 0.1, [1.0])
    every = 100_000
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(1, every + 1):
            loss = f'"val_loss": {2 + 9 / i}, ' if i % 10 == 0 else ""
            file.write(
                f'{{"step": {i}, {loss}"loss": {2 + 8 / i}, "tokens": {8 * i}, '
                f'"step_seconds": 0.5, "seconds": {i / 2}, "norms": {{"a": 1.0}}}}\n'
            )
    tracemalloc.start()
    (one,) = report.load_runs([tmp_path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6  # all of them take 90 MB
    most = thinning.MOST_EVALUATIONS + thinning.MOST_OTHERS
    assert most / 4 < len(one.records) <= most + 2
    assert one.records[0]["step"] == 1
    assert one.validation()[-1] == {
        "step": every,
        "val_loss": 2 + 9 / every,
        "loss": 2 + 8 / every,
        "tokens": 8 * every,
        "step_seconds": 0.5,
        "seconds": every / 2,
    }
    found, _ = methods.compare([one])
    axes = figures.figure(figures.drawings(found)["training_loss"].draw).axes[0]
    x, y = axes.lines[0].get_data()
    assert 90 < len(x) < 110
    assert y[-1] == pytest.approx(2, abs=1e-3)
    assert re.fullmatch("steps", axes.get_xlabel())
