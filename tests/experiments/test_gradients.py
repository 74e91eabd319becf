"""Steps whose gradients are made without back-propagation."""

import jax
import numpy as np
import pytest

import optlab
from experiments import records
from experiments.errors import UserError
from experiments.trainer import loop
from experiments.trainer.program import make_program
from tests.experiments.test_look import loaded

SMALL = {
    "model.width": 4,
    "model.layers": 1,
    "train.batch_size": 8,
    "optimizer.name": "sgd",
    "optimizer.kwargs.momentum": 0.0,
    "optimizer.weight_decay": 0.0,
    "schedule.name": "constant",
}
MAKERS = {
    "zeroth": lambda f: optlab.zo_value_and_grad(f, mu=0.01, samples=3, has_aux=True),
    "forward": lambda f: optlab.forward_value_and_grad(f, samples=3, has_aux=True),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_step_is_that_of_the_librarys_gradient(kind):
    words = {"gradient": kind, "gradient_samples": 3}
    words |= {"gradient_mu": 0.01} if kind == "zeroth" else {}
    config = loaded(SMALL | {f"optimizer.{n}": x for n, x in words.items()})
    program = make_program(config, trace=False)
    state = program.first_state()
    batch = next(program.task.train_iterator(0))
    after, metrics = program.layout.compile(program.step)(
        state, (batch,), program.peaks
    )
    key = jax.random.fold_in(state.key, 0)
    (loss, aux), grads = jax.jit(MAKERS[kind](program.task.loss))(
        state.params, jax.random.fold_in(key, 1), batch, key
    )
    rate = config.optimizer.learning_rate
    jax.tree.map(
        lambda p, q, g: np.testing.assert_allclose(q, p - rate * g, atol=1e-5),
        *(state.params, after.params, grads),
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], aux["accuracy"])


def test_a_run_learns_from_losses_alone(tmp_path):
    words = {
        "optimizer.name": "adamw",
        "optimizer.gradient": "zeroth",
        "optimizer.gradient_samples": 16,
        "optimizer.learning_rate": 0.01,
        "train.batch_size": 100,
        "train.steps": 100,
    }
    plain = {n: x for n, x in SMALL.items() if "kwargs" not in n}
    assert loop.train(loaded(plain | words), str(tmp_path)) == 0
    losses = [r["loss"] for r in records.read(tmp_path / records.NAME)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:3])


def test_what_needs_curvature_is_refused():
    words = {"optimizer.name": "adahessian", "optimizer.gradient": "forward"}
    plain = {n: x for n, x in SMALL.items() if "kwargs" not in n}
    with pytest.raises(
        UserError, match=r"optimizer.gradient: given 'forward', allowed"
    ):
        make_program(loaded(plain | words))
    with pytest.raises(UserError, match=r"optimizer.gradient: given 'first', allowed"):
        loaded(SMALL | {"optimizer.gradient": "first"})
