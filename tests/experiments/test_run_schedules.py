"""The schedules of the runner: their shapes, their arguments, what they read."""

import json

import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments import schedules
from experiments.errors import UserError
from experiments.trainer import identity, loop
from experiments.trainer.metrics import MetricsWriter


def shares(config):
    """What the schedule gives at each step."""
    steps = np.arange(config.train.steps)
    return np.broadcast_to(schedules.make_schedule(config)(steps), steps.shape)


def wsd(t, decay=0.2):
    return min(1.0, (1 - t) / decay)


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("constant", {}, lambda t: 1.0),
        ("linear", {}, lambda t: 1 - t),
        ("linear_decay", {"end_value": 0.1}, lambda t: 0.1 + 0.9 * (1 - t)),
        ("cosine", {}, lambda t: (1 + np.cos(np.pi * t)) / 2),
        # Shares of all 40 steps, of which the warm-up took 2.
        ("wsd", {}, lambda t: wsd(t, 8 / 38)),
        ("wsd", {"decay_fraction": 0.0}, lambda t: 1.0),
        ("wsd", {"decay_fraction": 0.95, "end_value": 0.5}, lambda t: 1 - t / 2),
        ("wsd", {"decay_fraction": 0.95, "shape": "sqrt"}, lambda t: 1 - np.sqrt(t)),
        ("uba", {"phi": 2.0}, lambda t: (1 + np.cos(np.pi * t)) / 2),
        (
            "uba",
            {"phi": 2.0, "phases": 2},
            lambda t: (1 + np.cos(np.pi * (2 * t % 1))) / 2,
        ),
    ],
)
def test_schedules(small, name, kwargs, expected):
    fields = {f"schedule__kwargs__{x}": value for x, value in kwargs.items()}
    found = shares(small(schedule__name=name, train__steps=40, **fields))
    # The config's warm-up takes the first 5 percent: 2 of 40 steps.
    np.testing.assert_allclose(found[:2], [1 / 3, 2 / 3], rtol=1e-6)
    t = np.arange(38) / 38
    np.testing.assert_allclose(found[2:], [expected(x) for x in t], atol=2e-6)


def test_wrong_arguments_are_told_when_the_config_is_read(small, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    folder = str(tmp_path)
    for name, kwargs, part in (
        (
            "wsd",
            {"decay_fraction": 1.0},
            "decay_fraction: given 1.0, allowed 0 to 0.95",
        ),
        ("wsd", {"shape": "cubic"}, "shape: given 'cubic', allowed linear, sqrt"),
        ("uba", {"phases": 0}, r"kwargs\.phases must be an integer >= 1"),
        ("uba", {"phi": -1}, r"kwargs\.phi must be"),
        ("cosine", {"end_value": -1}, r"kwargs\.end_value"),
        ("refined", {}, "run: missing"),
        ("refined", {"run": folder + "/x"}, "x/metrics.jsonl: No such file"),
        ("refined", {"run": folder}, "has no two records with grad_norm"),
        ("refined", {"run": folder, "norm": "l3"}, "norm: given 'l3', allowed l1, l2"),
    ):
        fields = {f"schedule__kwargs__{x}": value for x, value in kwargs.items()}
        with pytest.raises(UserError, match=part) as caught:
            small(schedule__name=name, **fields)
        assert str(caught.value).startswith("--config.schedule.kwargs.")


def records_of(folder, norms):
    """A run's records, with a line that is none and a step that was skipped."""
    folder.mkdir(exist_ok=True)
    writer = MetricsWriter(folder)
    for step, norm in enumerate(norms, start=1):
        writer.write({"step": step, "grad_norm": norm, "grad_norm_l1": norm**2})
    writer.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("broken\n")


def test_a_schedule_is_refined_from_a_run(small, tmp_path):
    norms = 1 + np.exp(-np.arange(20) / 3)
    records_of(tmp_path, [*norms[:7], np.inf, *norms[8:]])
    norms[7] = (norms[6] + norms[8]) / 2
    fields = {"schedule__name": "refined", "schedule__kwargs__run": str(tmp_path)}

    def config(**changes):
        return small(**(fields | {"schedule__warmup_fraction": 0} | changes))

    expected = optlab.refined_schedule(norms, 1.0)(np.arange(20))
    np.testing.assert_allclose(shares(config()), expected, rtol=1e-6)
    # The other norm, a warm-up, and another number of steps.
    found = shares(config(schedule__warmup_fraction=0.25, schedule__kwargs__norm="l1"))
    squares = norms**2
    squares[7] = (squares[6] + squares[8]) / 2
    rest = optlab.refined_schedule(squares[5:], 1.0, norm="l1")(np.arange(15))
    np.testing.assert_allclose(found, [*(np.arange(1, 6) / 6), *rest], rtol=1e-6)
    longer = shares(config(train__steps=39))
    stretched = np.interp(np.arange(39) / 2, np.arange(20), norms)
    expected = optlab.refined_schedule(stretched, 1.0)(np.arange(39))
    np.testing.assert_allclose(longer, expected, rtol=1e-6)


def test_a_run_goes_on_with_the_norms_that_it_began_with(small, tmp_path):
    records_of(tmp_path / "a", np.linspace(2, 1, 6))
    fields = {"schedule__kwargs__run": str(tmp_path / "a"), "train__eval_every": 6}
    config = small(schedule__name="refined", train__steps=6, **fields)
    run = tmp_path / "b"
    assert loop.train(config, str(run)) == 0
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["schedule_digest"] == schedules.digest(config)
    assert loop.train(config, str(run)) == 0
    records_of(tmp_path / "a", np.linspace(3, 1, 6))
    with pytest.raises(UserError, match=r"other records in schedule\.kwargs\.run"):
        loop.train(config, str(run))
    assert not identity.of_schedule(configs.load("configs/digits.py")[0])
