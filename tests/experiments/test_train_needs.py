"""Every registered optimizer trains the byte-level model through the runner."""

import json

import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments.trainer import loop
from tests.experiments.conftest import small_arguments

# Rates at which 40 steps help this model clearly: those of hidden matrices and, where
# the method has another for the other leaves, of these.
RATES = {
    "adahessian": (0.1, None),
    "adam_h": (0.02, 0.01),
    "adamw": (0.01, None),
    "cosmos": (0.01, 0.01),
    "cosmos_h": (0.02, 0.01),
    "lanton": (0.02, None),
    "lion": (0.003, None),
    "muon": (0.02, 0.01),
    "muon_h": (0.02, 0.01),
    "normuon": (0.02, 0.01),
    "root": (0.02, 0.01),
    "scion": (0.001, None),
    "sgd": (0.5, None),
    "soap": (0.01, 0.01),
    "soap_h": (0.02, 0.01),
    "spam": (0.01, None),
    "stable_spam": (0.01, None),
}


def losses(tmp_path, name, *more):
    rate, adam_rate = RATES[name]
    changes = {"optimizer__adam_learning_rate": adam_rate} if adam_rate else {}
    words = small_arguments(
        task__context=32,
        train__steps=40,
        train__eval_every=40,
        optimizer__name=name,
        optimizer__learning_rate=rate,
        **changes,
    )
    config, _ = configs.load("configs/stdlib_lm.py", [*words, *more])
    assert loop.train(config, str(tmp_path)) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_optimizer_has_a_rate():
    assert set(RATES) == set(optlab.registry.names())


# Of the hyperball steps one: the others differ by directions that train themselves.
@pytest.mark.parametrize(
    "name", sorted(RATES.keys() - {"adam_h", "cosmos_h", "soap_h"})
)
def test_the_loss_falls_in_40_steps(tmp_path, name):
    records = losses(tmp_path, name)
    assert len(records) == 40
    curve = [record["loss"] for record in records]
    # From that of equal odds, 5.5 nats, by more than one.
    assert abs(curve[0] - np.log(256)) < 1
    assert np.mean(curve[-5:]) < curve[0] - 1.2
    assert records[-1]["tokens"] == 40 * 8 * 32


@pytest.mark.parametrize("words", ["noise=paired", "noise=paired --accumulate"])
def test_paired_noise_reads_two_batches_a_step(tmp_path, words):
    accumulate = ["--config.train.accumulate=2"] if "accumulate" in words else []
    records = losses(
        tmp_path, "lanton", "--config.optimizer.kwargs.noise=paired", *accumulate
    )
    curve = [record["loss"] for record in records]
    assert np.mean(curve[-5:]) < curve[0] - 1.2
    assert records[-1]["tokens"] == 2 * 40 * 8 * 32


def test_a_hessian_every_fourth_step_with_accumulation(tmp_path):
    records = losses(
        tmp_path,
        "adahessian",
        "--config.optimizer.kwargs.hessian_interval=4",
        "--config.train.accumulate=2",
    )
    curve = [record["loss"] for record in records]
    assert np.mean(curve[-5:]) < curve[0] - 1.2
