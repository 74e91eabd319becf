"""What is odd in a run's folder costs that run, and nothing else of the report."""

import csv
import json
import os
import re
import xml.etree.ElementTree as ET

import pytest

from experiments import config as configs
from experiments import report
from experiments.reporting import escape, files, methods, tables
from tests.helpers.synthetic_runs import run

CONFIG = {
    "seed": 0,
    "optimizer": {"name": "adamw", "learning_rate": 0.1},
    "schedule": {"name": "cosine"},
}
RESULT = {"reason": "completed", "val_loss": 1.0}


def unreadable(path):
    """A file whose contents the machine cannot give: a link to itself."""
    path.symlink_to(path)


def pipe(path):
    os.mkfifo(path)


ANYWHERE = {
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "number": b"3",
    "garbage": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "zeros": bytes(64),
    "deep": b"[" * 100_000,
    "folder": lambda path: path.mkdir(),
    "pipe": pipe,
    "unreadable": unreadable,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}
# File -> what it may hold that no report can show.
ODD = {
    "metrics.jsonl": ANYWHERE,
    "config.json": ANYWHERE
    | {"empty": b"", "config of null": b'{"config": null}'}
    | {
        f"{field} of {value!r}": json.dumps(
            {"config": CONFIG | {field: value}}
        ).encode()
        for field, values in {
            "seed": [None, "0", [0]],
            "optimizer": [
                *([], "adamw", {"name": "adamw"}, {"learning_rate": 0.1}),
                *({"name": "adamw", "learning_rate": x} for x in (0, -1, "1", None)),
                {"name": None, "learning_rate": 0.1},
            ],
            "schedule": [None, {"name": 1}],
        }.items()
        for value in values
    },
    "result.json": ANYWHERE
    | {"empty": b""}
    | {
        f"{field} of {value!r}": json.dumps(RESULT | {field: value}).encode()
        for field, value in {
            "reason": None,
            "val_loss": "1.0",
            "best_val_loss": [],
            "steps": {},
            "seconds": float("nan"),
            "optimizer_state_bytes": 10**400,
        }.items()
    },
}


def test_a_damaged_run_is_named_and_the_rest_is_reported(tmp_path, capsys):
    damaged = {}
    for file, contents in ODD.items():
        for number, (what, content) in enumerate(contents.items()):
            folder = run(tmp_path / f"{file}-{number}", "adamw", 0.1, [1.0])
            (folder / file).unlink()
            if isinstance(content, bytes):
                (folder / file).write_bytes(content)
            else:
                content(folder / file)
            damaged[folder] = f"{file} ({what})"
    (tmp_path / "no config").mkdir()
    (tmp_path / "no config" / "metrics.jsonl").write_text("")
    damaged[tmp_path / "no config"] = "config.json (missing)"
    good = run(tmp_path / "good", "sgd", 0.1, [2.0])
    found = report.load_runs([tmp_path])
    assert [one.folder for one in found] == [good]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(damaged)
    for folder, what in damaged.items():
        (line,) = [line for line in lines if f"{folder} is no whole run" in line]
        assert what.partition(" ")[0] in line, (what, line)
        assert len(line) < len(str(folder)) + 200
    # Where no run is left, that is the user's mistake, told in one line.
    with pytest.raises(configs.UserError, match=r"is no whole run.* \(and 1 more\)"):
        report.load_runs(list(damaged)[:2])


def test_a_line_that_is_no_record_costs_that_line(tmp_path, capsys):
    folder = run(tmp_path, "adamw", 0.1, [2.0, 1.5, 1.0])
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    odd = {"step": 15, "val_loss": [1], "tokens": "x", "learning_rate": 3}
    more = [bytes(9) + b"\n", b"null\n", json.dumps(odd).encode() + b"\n", b"{"]
    half = len(lines) // 2
    (folder / "metrics.jsonl").write_bytes(
        b"".join([*lines[:half], *more[:3], *lines[half:], more[3]])
    )
    (one,) = report.load_runs([tmp_path])
    assert [r["val_loss"] for r in one.validation()] == [2.0, 1.5, 1.0]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(
        r"metrics.jsonl: no record in \d of its lines, the first is 3", line
    )
    (method,), base = methods.compare([one])
    assert tables.methods_table([method], base)[0]["val loss"] == ("1.0000", 1.0)


def test_links_are_followed_and_end(tmp_path, capsys):
    real = run(tmp_path / "elsewhere", "adamw", 0.1, [1.0])
    below = run(tmp_path / "elsewhere", "adamw", 0.2, [1.0])
    other = run(tmp_path / "other", "adamw", 0.3, [1.0])
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "one").symlink_to(real)
    (runs / "all").symlink_to(real.parent)
    (real / "again").symlink_to(real.parent)
    (runs / "self").symlink_to(runs / "self")
    (runs / "up").symlink_to(tmp_path)
    (runs / "records").mkdir()
    for name in ("metrics.jsonl", "config.json", "result.json"):
        (runs / "records" / name).symlink_to(other / name)
    found = {one.folder: one.rate for one in report.load_runs([runs, runs / "one"])}
    # `up` holds the folder that was named: what is beside that was not meant.
    assert found == {real: 0.1, below: 0.2, runs / "records": 0.3}
    assert capsys.readouterr().err == ""


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    run(tmp_path / "a", "adamw", 0.1, [1.0])
    (tmp_path / "empty").mkdir()
    assert len(report.load_runs([tmp_path / "a", tmp_path / "empty"])) == 1
    assert f"{tmp_path / 'empty'}: no run" in capsys.readouterr().err
    with pytest.raises(configs.UserError, match=r"no folder .*typo"):
        report.load_runs([tmp_path / "a", tmp_path / "typo"])


def test_a_loss_of_zero_counts(tmp_path):
    run(tmp_path, "adamw", 0.1, [1.0, 0.0], b1=0.8)
    run(tmp_path, "adamw", 0.1, [1.0, 0.5], b1=0.9, b2=0.9)
    run(tmp_path, "sgd", 0.1, [0.5, 0.0], start=0.0)
    found, base = methods.compare(report.load_runs([tmp_path]))
    assert base.name == "adamw, cosine, b1=0.8"
    assert base.loss == 0.0
    assert [one.loss for one in found] == [0.0, 0.0, 0.5]
    assert [one.steps_to for one in found] == [20, 20, None]
    assert found[1].runs[0].initial_loss == 0.0


def test_a_diverged_baseline_is_reached_by_none(tmp_path):
    run(tmp_path, "adamw", 0.1, [3.0], reason="diverged")
    run(tmp_path, "sgd", 0.1, [2.0])
    found, base = methods.compare(report.load_runs([tmp_path]))
    assert base.diverged
    assert [one.name for one in found] == ["sgd, cosine", "adamw, cosine"]
    assert [one.steps_to for one in found] == [None, None]


def test_unknown_tuned_fields_are_refused(tmp_path, given):
    run(tmp_path, "adamw", 0.1, [1.0], beta=0.9)
    for field, near in {
        "zzz": "",
        "optimizer.weight_decai": "optimizer.weight_decay",
        "optimizer.kwargs.betta": "optimizer.kwargs.beta",
        "optimizer": "optimizer.name",
    }.items():
        given(report._FLAGS, tuned=f"seed,{field}")
        with pytest.raises(configs.UserError) as caught:
            report.main([str(tmp_path)], [])
        assert caught.value.status == 2
        message = str(caught.value)
        assert message.startswith(f"--tuned: given {field!r}, allowed ")
        assert not near or f"(nearest: {near})" in message
    assert not (tmp_path / "report").exists()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, given):
    run(tmp_path / "a", "adamw", 0.1, [1.0])
    (tmp_path / "file").write_text("")
    given(report._FLAGS, output=tmp_path / "file" / "report")
    with pytest.raises(configs.UserError, match=r"--output: .*file"):
        report.main([str(tmp_path / "a")], [])


NAMES = [
    "$x^$",
    r"\$\alpha_{",
    "a|b",
    "`code`",
    "two\nlines",
    "=1+1",
    "+cmd",
    "-cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\tcell",
    "bell\x07\x1b[31m",
    "half \ud800",
    "_hidden",
    "{{runs}}",
    "#341976",
    "<b>&amp;",
    "x" * 300,
]


def named(folder, names):
    """A run of an optimizer of each name."""
    for i, name in enumerate(names):
        made = run(folder, "adamw", 0.1, [2.0, 1.0])
        config = json.loads((made / "config.json").read_text())
        config["config"]["optimizer"]["name"] = name
        (made / "config.json").write_text(json.dumps(config))
        made.rename(folder / f"={i}")


def test_any_name_is_shown_as_it_is_in_tables(tmp_path):
    named(tmp_path, NAMES)
    found, base = methods.compare(report.load_runs([tmp_path]))
    shown = {f"{escape.visible(name)}, cosine" for name in NAMES}
    assert {one.name for one in found} == shown
    assert all(text.isprintable() for text in shown)
    rows = tables.methods_table(found, base)
    texts = [{x: text for x, (text, _) in row.items()} for row in rows]
    text = files.markdown(*files.split(texts))
    lines = text.splitlines()
    assert len(lines) == len(NAMES) + 2
    cells = [re.split(r"(?<!\\) \| ", line) for line in lines]
    assert len({len(line) for line in cells}) == 1
    unescaped = {re.sub(r"\\([^a-z0-9\s])", r"\1", line[0][2:]) for line in cells}
    assert unescaped >= shown
    table = files.split(tables.csv_rows(found))
    files.write_csv(tmp_path / "results.csv", *table)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"].removeprefix("'") for row in rows} == shown
    text = [row[name] for row in rows for name in ("method", "optimizer", "folder")]
    assert not [cell for cell in text if cell.lstrip()[:1] in ("=", "+", "-", "@")]


def test_any_name_is_shown_as_it_is_in_figures_and_page(tmp_path, given, capsys):
    names = [
        "$x^$",
        r"\$\a_{<b>&amp;",
        "two\nlines\x07",
        "_hidden",
        "{{runs}}",
        "#341976",
    ]
    named(tmp_path, names)
    given(report._FLAGS, output=tmp_path / "report")
    assert report.main([str(tmp_path)], []) == 0
    assert "\x07" not in capsys.readouterr().out
    shown = {f"{escape.visible(name)}, cosine" for name in names}
    for path in (tmp_path / "report").glob("*.svg"):
        nodes = ET.fromstring(path.read_text()).iter()
        texts = {"".join(node.itertext()).strip() for node in nodes}
        assert {text.partition(" (")[0] for text in texts} >= shown, path
    page = (tmp_path / "report" / "index.html").read_text()
    assert "{{runs}}, cosine" in page
    assert "{{methods}}" not in page
    assert ">#341976, cosine</label>" in page
    assert "\x07" not in page


def test_numbers_stay_numbers_in_cells():
    same = ["-1.5", "-3", "+2e-05", "1,872,388", "-", "-inf", -1.5, 0, None, "adamw"]
    assert [escape.csv_cell(value) for value in same] == same
    for text in ("=1", "-1+1", "+A1", "@x", " =1", "--", "-1 "):
        assert escape.csv_cell(text) == f"'{text}"
        assert escape.csv_text(f"'{text}") == text
