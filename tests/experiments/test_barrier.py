"""Forks of a run, and the loss on the line between two of them."""

import jax
import numpy as np
import pytest

from experiments import barrier, looked
from experiments.errors import UserError
from experiments.inside import line
from experiments.inside.run import opened
from experiments.reporting import inside
from experiments.reporting.methods import compare
from experiments.reporting.runs import load_runs
from experiments.trainer import loop
from experiments.trainer.program import make_program
from tests.experiments.test_look import WORDS, loaded

PLAIN = {n: x for n, x in WORDS.items() if n != "optimizer.kwargs.b2"}
# The second hidden layer makes the stack longer than one.
PLAIN |= {"model.layers": 2, "train.steps": 2}


def do(*words):
    """The command in this process."""
    barrier._FLAGS.unparse_flags()
    for name in barrier._FLAGS:
        barrier._FLAGS[name].unparse()
    barrier._FLAGS(["", *(str(w) for w in words if str(w).startswith("--"))])
    return barrier.main([str(w) for w in words if not str(w).startswith("--")], [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trunk, and what SGD at a large rate makes of its weights at step 1."""
    folder = tmp_path_factory.mktemp("runs")
    assert loop.train(loaded(PLAIN), str(folder / "trunk")) == 0
    words = PLAIN | {
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.3,
        "train.fork_run": str(folder / "trunk"),
        "train.fork_step": 1,
    }
    assert loop.train(loaded(words), str(folder / "fork")) == 0
    return folder / "trunk", folder / "fork"


def test_a_fork_starts_from_the_weights_of_the_other_run(runs):
    trunk, fork = runs
    with opened(trunk, []) as one, opened(fork, []) as other:
        weights = one.restore(1)[0].params
        first = other.program.first_state()
        moved = other.restore(2)[0].params
    jax.tree.map(np.testing.assert_array_equal, first.params, weights)
    assert int(first.step) == int(first.opt_state.count) == 0
    assert not np.array_equal(moved["head"], weights["head"])


def test_the_line_is_that_between_the_weights(runs, capsys):
    trunk, fork = runs
    assert do(trunk, fork, "--points=5", "--examples=8") == 0
    said = capsys.readouterr()
    (found,) = looked.read(trunk)
    with opened(trunk, []) as one, opened(fork, []) as other:
        a, b = (jax.device_get(x.restore(2)[0].params) for x in (one, other))
        batch = one.probe(8)
        loss = jax.jit(lambda p: one.program.task.loss(p, batch, jax.random.key(0))[0])

        def along(own, t):
            """The weights where only some move: one leaf, or a slice of two."""
            return jax.tree_util.tree_map_with_path(
                lambda path, x, y: x + t * own(path) * (y - x), a, b
            )

        def second(path):
            is_in = path[0].key == "layers"
            return np.asarray([0.0, 1.0]).reshape(2, *(1,) * (a_rank(path) - 1)) * is_in

        def a_rank(path):
            node = a
            for key in path:
                node = node[key.key]
            return max(node.ndim, 1) if path[0].key == "layers" else 1

        whole = [float(loss(along(lambda _: 1.0, t))) for t in np.linspace(0, 1, 5)]
        apart = [
            float(loss(along(lambda p: second(p) if p[0].key == "layers" else 0.0, t)))
            for t in np.linspace(0, 1, 5)
        ]
    np.testing.assert_allclose(found["losses"], whole, rtol=1e-5)
    np.testing.assert_allclose(found["barrier"], line.barrier(whole), atol=1e-5)
    layers = {"embed", "layers/0", "layers/1", "head", "head_bias"}
    assert set(found["layer_barrier"]) == layers
    np.testing.assert_allclose(
        found["layer_barrier"]["layers/1"], line.barrier(apart), atol=1e-5
    )
    assert "layers/1 (" in said.err and f"barrier {found['barrier']:.4f}" in said.out
    # It is not measured again, and the report shows it.
    assert do(trunk, fork, "--points=5", "--examples=8") == 0
    assert capsys.readouterr().err == "" and len(looked.read(trunk)) == 1
    loaded_runs = load_runs([trunk.parent])
    looks = inside.read(loaded_runs)
    assert set(inside.drawings(compare(loaded_runs)[0], looks)) == {"look_barrier"}
    (row,) = inside.barrier_table(loaded_runs, looks)
    assert row["from"] == "trunk step 2" and row["to"] == "fork step 2"
    assert float(row["its barrier"]) == pytest.approx(
        max(found["layer_barrier"].values()), abs=1e-4
    )


def test_a_barrier_is_above_the_line_between_the_ends():
    t = np.linspace(0, 1, 21)
    assert line.barrier(3 + 2 * t) == pytest.approx(0)
    assert line.barrier(1 + t - 4 * t * (1 - t)) == 0
    assert line.barrier(1 + t + 4 * t * (1 - t)) == pytest.approx(1)


def test_mistakes_are_one_line(runs, tmp_path):
    trunk, fork = runs
    for words, said in (
        ((trunk,), "name two runs"),
        ((trunk, tmp_path), "is no run"),
        ((trunk, fork, "--step=7"), r"--step: .* step 7, allowed 1, 2"),
    ):
        with pytest.raises(UserError, match=said):
            do(*words)
    forked = {"train.fork_run": str(trunk)}
    for words, said in (
        ({"train.fork_run": str(tmp_path)}, "train.fork_run: .* holds no checkpoint"),
        (forked | {"train.fork_step": 7}, r"fork_step: given 7, allowed .*: 1, 2"),
        ({"train.fork_step": 1}, "only with train.fork_run"),
    ):
        with pytest.raises(UserError, match=said):
            make_program(loaded(PLAIN | words))
    other = make_program(loaded(PLAIN | forked | {"model.width": 5}))
    with pytest.raises(UserError, match=r"fork_run: the weights .* do not fit"):
        other.first_state()
