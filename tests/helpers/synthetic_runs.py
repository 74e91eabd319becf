"""Folders of runs that nobody trained, for reports."""

import json

import pytest

from experiments import report


def run(
    folder,
    name,
    rate,
    losses,
    *,
    seed=0,
    start=5.0,
    reason="completed",
    pace=0.5,
    **own,
):
    """A run: a loss every ten steps of `pace` seconds, from the tenth on."""
    folder = folder / f"{name}-{rate}-{seed}-{len(own)}"
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "optimizer": {"name": name, "learning_rate": rate, "kwargs": own},
        "schedule": {"name": "cosine", "kwargs": {}},
        "train": {"steps": 30, "eval_every": 10},
    }
    records = [
        {"step": 1, "loss": start, "tokens": 8, "step_seconds": 0.9, "seconds": 0.5}
    ]
    for i, loss in enumerate(losses, 1):
        record = {"step": 10 * i, "loss": loss, "val_loss": loss, "tokens": 80 * i}
        records.append(record | {"step_seconds": pace, "seconds": 10 * pace * i})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records)
    )
    (folder / "config.json").write_text(json.dumps({"config": config}))
    result = {
        "val_loss": losses[-1] if losses and reason != "diverged" else None,
        "best_val_loss": min(losses, default=None),
        "steps": 10 * len(losses),
        "seconds": 5.0 * len(losses),
        "optimizer_state_bytes": 1_000_000 * len(name),
        "peak_memory_bytes": 7,
        "reason": reason,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path):
    """AdamW at three rates, the best with two seeds; SGD at two, one diverged."""
    run(tmp_path, "adamw", 0.1, [4.0, 3.0, 3.0])
    run(tmp_path, "adamw", 0.2, [4.0, 3.0, 2.0])
    run(tmp_path, "adamw", 0.2, [4.0, 2.3, 2.2], seed=1)
    run(tmp_path, "adamw", 0.4, [6.0, 7.0, 7.0])
    run(tmp_path, "sgd", 0.1, [2.5, 2.1, 1.9])
    run(tmp_path, "sgd", 1.0, [4.5], reason="diverged")
    return report.load_runs([tmp_path])
