"""What is given for roles: slips of the pen are told, a part of a tree is quiet."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.registry import get, names
from optlab.roles import Embedding, Matrix


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: optlab.muon(1.0, roles=optlab.default_roles), "roles: call it, optl"),
        (lambda: optlab.muon(1.0, roles=Matrix), "roles: Matrix is a class"),
        (lambda: optlab.default_roles(stacked=3), "stacked must be .* several, got 3"),
        (lambda: optlab.default_roles(stacked=None), "stacked must be .*, got None"),
        (lambda: optlab.default_roles(embeddings=True), "embeddings must .* got True"),
        (lambda: optlab.default_roles(embeddings={"a": 1}), "embeddings must be"),
        (lambda: Matrix("0", 1), "rows must be integers, axes of the leaf, got '0'"),
        (lambda: Matrix(0, None), "cols must be integers"),
        (lambda: Matrix(0, (1, True)), "cols must be integers"),
        (lambda: Matrix(0, 1, 0.0), "spatial must be integers"),
        (lambda: Embedding((0,)), r"vocabulary_axis must be an integer, got \(0,\)"),
    ],
)
def test_slips_of_the_pen_are_told_in_one_line(make, text):
    with pytest.raises(ValueError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_one_integer_is_one_axis_and_one_pattern_one_pattern():
    assert Matrix(0, 1, 0) == Matrix((0,), [np.int64(1)], (0,))
    assert hash(Matrix([0, 1], 2)) == hash(Matrix((0, 1), (2,)))
    pattern = re.compile("^layers/")
    assert optlab.default_roles(pattern) == optlab.default_roles(("^layers/",))
    assert optlab.default_roles({"^layers/"}) == optlab.default_roles("^layers/")


@pytest.mark.parametrize("name", names())
def test_a_pattern_of_the_whole_tree_is_not_missed_in_a_part(name, caplog, monkeypatch):
    monkeypatch.setattr("optlab.roles.default._warned", set())
    params = {
        "embed": jnp.ones((50, 8)),
        "layers": {"up": jnp.ones((2, 8, 6)), "bias": jnp.ones((2, 6))},
        "head": jnp.ones((8, 50)),
    }
    rule = optlab.default_roles(stacked="^layers/", embeddings=("^embed", "^head"))
    tx = get(name).build(1e-2, roles=rule)
    labels = {"embed": "a", "layers": "b", "head": "a"}
    masked = optax.masked(tx, {"embed": True, "layers": False, "head": True})
    with caplog.at_level(logging.WARNING, "optlab"):
        for each in (tx, optax.partition({"a": tx, "b": tx}, labels), masked):
            jax.eval_shape(each.init, params)
    assert not caplog.records
