"""COSMOS against the authors' recorded trajectories, and its own corner cases."""

import pytest

import optlab
from tests.golden import follow, load


def optimizer(meta):
    """The authors' arguments in ours."""
    rate, ratio, decay = meta["learning_rate"], meta["lr_ratio"], meta["weight_decay"]
    return optlab.cosmos(
        rate * ratio,
        b1=meta["b1"],
        b2=meta["b2"],
        eps=meta["eps"],
        rank=meta["rank"],
        gamma=meta["gamma"],
        nesterov=meta["nesterov"],
        ns_steps=meta["ns_steps"],
        weight_decay=decay / ratio,
        adam_learning_rate=rate,
        adam_weight_decay=decay,
        adam_b1=0.9,
        adam_b2=meta["b2"],
        adam_eps=meta["eps"],
    )


@pytest.mark.parametrize("name", ["cosmos_a", "cosmos_b"])
def test_follows_the_authors_code_in_float64(name, x64):
    data = load(name)
    assert follow(optimizer(data.meta), data) < 1e-9


@pytest.mark.parametrize("name", ["cosmos_a", "cosmos_b"])
def test_follows_the_authors_code_in_float32(name):
    data = load(name)
    assert follow(optimizer(data.meta), data) < 5e-4
