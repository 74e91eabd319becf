"""What a run writes and shows, read back: TensorBoard, Weights & Biases, the bar."""

import importlib.machinery
import io
import json
import struct
import sys
import types

import pytest
from tensorboardX.proto import event_pb2

from experiments import config as configs
from experiments.trainer import loop
from experiments.trainer.metrics import MetricsWriter
from experiments.trainer.progress import Progress


def record(step, loss):
    return {"step": step, "loss": loss, "learning_rate": {"learning_rate": 0.5 * step}}


def events(folder):
    """Of all files in the order of their making: TFRecords, their checksums skipped."""
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_has_every_number_and_goes_on(tmp_path):
    for after, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = MetricsWriter(tmp_path, after)
        for step in steps:
            writer.write(record(step, 10.0 * step + after))
        writer.write(record(9, float("nan"))) if after else None
        writer.close()
    found = list(events(tmp_path / "tensorboard"))
    starts = [e.step for e in found if e.HasField("session_log")]
    assert starts == [1, 3]  # what TensorBoard has from step 3 on is dropped
    values = [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in found
        if event.HasField("summary")
    ]
    tag = "learning_rate/learning_rate"
    expected = [(1, 10.0), (2, 20.0), (3, 30.0), (3, 32.0), (4, 42.0)]
    assert values[:-1] == [(s, {"loss": x, tag: 0.5 * s}) for s, x in expected]
    assert values[-1] == (9, {tag: 4.5})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_a_log_plain_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(tmp_path, 40)
    progress.start()
    for step in (10, 20):
        progress.update(
            {"step": step, "loss": 2.345, "tokens_per_second": 6789, "step_seconds": 3}
            | ({"val_loss": 3.25} if step == 20 else {})
        )
    progress.close()
    shown = screen.getvalue()
    assert "20/40" in shown and "loss 2.345  val 3.250  6,789 tokens/s" in shown
    assert ":" in shown.rpartition("tokens/s")[2]  # the time left
    log = (tmp_path / "log.txt").read_text()
    assert log.splitlines()[-1].endswith("val 3.250  6,789 tokens/s  60 s left")
    assert "\x1b" not in log


def test_weights_and_biases_gets_the_records_and_the_run_goes_on(
    tmp_path, small, monkeypatch
):
    begun, logged = [], []

    def init(**words):
        begun.append(words)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)),
            finish=lambda: logged.append("finished"),
        )

    package = types.ModuleType("wandb")
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    package.init = init
    words = {"train__steps": 2, "train__wandb_project": "p"}
    folder = tmp_path / "run"
    with pytest.raises(configs.UserError, match=r"wandb_project: wandb is not install"):
        loop.train(small(**words), str(folder))
    assert not folder.exists()
    monkeypatch.setitem(sys.modules, "wandb", package)
    assert loop.train(small(**words), str(folder)) == 0
    (folder / "result.json").unlink()
    assert loop.train(small(**words), str(folder)) == 0
    assert begun[0] == begun[1] and begun[0]["project"] == "p"
    assert begun[0]["config"]["train"]["steps"] == 2
    records = (folder / "metrics.jsonl").read_text().splitlines()
    assert [step for step, _ in logged[:2]] == [1, 2] and logged[2] == "finished"
    assert logged[1][1]["val_loss"] == json.loads(records[1])["val_loss"]
    assert "learning_rate/learning_rate" in logged[0][1]
