"""Classes one group after another: the order of the data, and what is forgotten."""

import numpy as np
import pytest

from experiments import records
from experiments.data.order import Process
from experiments.errors import UserError
from experiments.reporting import groups
from experiments.reporting.runs import load_runs
from experiments.trainer import loop
from experiments.trainer.program import make_program
from tests.experiments.test_look import loaded

TURNS = {
    "task.name": "classes_in_turn",
    "model.width": 16,
    "model.layers": 1,
    "train.batch_size": 50,
    "train.steps": 100,
    "train.eval_every": 20,
    "schedule.name": "constant",
    "optimizer.learning_rate": 0.01,
}


def test_batches_hold_the_group_whose_turn_it_is_and_go_on_anywhere():
    task = make_program(loaded(TURNS), trace=False).task
    batches = task.train_iterator(0)
    seen = []
    for number in range(105):
        if number == 37:
            position = batches.get_state()
        seen.append(next(batches)["label"])
    turns = [min(i // 20, 4) for i in range(105)]
    for labels, turn in zip(seen, turns, strict=True):
        assert set(labels) <= {2 * turn, 2 * turn + 1}
    assert set(np.concatenate(seen[:5])) == {0, 1}
    again = task.train_iterator(0)
    again.set_state(position)
    np.testing.assert_array_equal(next(again)["label"], seen[37])
    halves = [task.train_iterator(0, Process(i, 2)) for i in range(2)]
    both = np.concatenate([next(half)["label"] for half in halves])
    np.testing.assert_array_equal(both, seen[0])


def test_earlier_groups_are_forgotten(tmp_path):
    longer = {"model.width": 64, "train.steps": 200, "train.eval_every": 40}
    rate = {"optimizer.learning_rate": 2e-3}
    assert loop.train(loaded(TURNS | longer | rate), str(tmp_path)) == 0
    found = [r for r in records.read(tmp_path / records.NAME) if "val_loss" in r]
    names = ["0_1", "2_3", "4_5", "6_7", "8_9"]
    matrix = np.asarray([[r[f"val_accuracy_{n}"] for n in names] for r in found])
    assert matrix.shape == (5, 5)
    assert (np.diag(matrix) > 0.8).all()
    assert (matrix[np.triu_indices(5, 1)] == 0).all()  # not yet learned
    assert matrix[-1, :-1].mean() < 0.5
    shares = np.asarray([r["val_accuracy"] for r in found])
    assert shares[0] == pytest.approx(matrix[0].mean(), abs=0.05)
    runs = load_runs([tmp_path])
    rows = groups.table(runs)
    assert [row["accuracy 0_1"] for row in rows] == [f"{x:.3f}" for x in matrix[:, 0]]
    lost = (matrix.max(0) - matrix[-1]).mean()
    assert rows[-1]["forgotten"] == f"{lost:.3f}" and rows[0]["forgotten"] == "0.000"
    (end,) = groups.summary(runs)
    assert end["mean accuracy of groups"] == f"{matrix[-1].mean():.3f}"
    assert end["seeds"] == "1" and end["forgotten"] == rows[-1]["forgotten"]
    assert all(1 < r["val_effective_rank"] <= 64 for r in found)


def test_mistakes_are_one_line():
    for words, said in (
        ({"task.kwargs.classes_each": 3}, r"classes_each: given 3, allowed a divisor"),
        ({"train.steps": 4}, r"train.steps: given 4, allowed 5 or more"),
    ):
        with pytest.raises(UserError, match=said):
            make_program(loaded(TURNS | words))
