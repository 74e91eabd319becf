"""What only fails when the step is traced is one line, before there is a folder."""

import math

import pytest

import optlab
from experiments import config as configs
from experiments.trainer import loop
from experiments.trainer.optimizer import make_optimizer
from experiments.trainer.program import make_program
from optlab.optimizers.lion import lion
from tests.experiments.conftest import small_arguments

COSMOS = ["--config.optimizer.name=cosmos"]


def load(*words):
    return configs.load("configs/stdlib_lm.py", [*small_arguments(), *words])[0]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ([*COSMOS, "ns_dtype=float23", "b1=0.5", "rank=3"], "ns_dtype"),
        ([*COSMOS, "ns_steps=10000000"], "ns_steps"),
        ([*COSMOS, "mu_dtype=no"], "mu_dtype"),
        (["--config.optimizer.name=root", "ns_coeffs=abc"], "ns_coeffs"),
        (["--config.optimizer.name=spam", f"reset_interval={10**20}"], "reset_inter"),
        (["--config.optimizer.name=adahessian", "hessian_interval=0"], "hessian_in"),
    ],
)
def test_an_argument_that_fails_in_the_step_is_named(tmp_path, words, field):
    words = [w if w[0] == "-" else f"--config.optimizer.kwargs.{w}" for w in words]
    with pytest.raises(configs.UserError) as caught:
        loop.train(load(*words), str(tmp_path / "run"))
    message = str(caught.value)
    assert message.startswith(f"--config.optimizer.kwargs.{field}")
    assert message.isprintable()
    assert not (tmp_path / "run").exists()


def test_every_number_of_an_optimizer_is_checked_by_the_library():
    """Rates too, which the optimizer gets by injection."""
    checked = set()
    for name in optlab.registry.names():
        chosen = f"--config.optimizer.name={name}"
        kwargs = configs.load(None, [chosen])[0].optimizer.kwargs
        for argument in kwargs:
            if kwargs.get_type(argument) is not float or argument in checked:
                continue
            for value in (-1.0, math.inf) if argument.endswith("_rate") else (-1.0,):
                word = f"--config.optimizer.kwargs.{argument}={value}"
                config, _ = configs.load(None, [chosen, word])
                with pytest.raises(
                    ValueError, match=rf"^{argument} must be .* {value}"
                ):
                    make_optimizer(config, optlab.default_roles())[0].init({})
                checked.add(argument)
    assert {"vector_learning_rate", "b1", "adam_weight_decay"} < checked
    with pytest.raises(configs.UserError, match=r"kwargs\.vector_learning_rate must"):
        make_program(
            load(
                "--config.optimizer.name=lanton",
                "--config.optimizer.kwargs.vector_learning_rate=-1",
            ),
            trace=False,
        )


def test_an_optimizer_that_fails_tells_where(tmp_path, monkeypatch):
    def broken(learning_rate, *, power: int = 2):
        tx = lion(learning_rate)
        return tx._replace(update=lambda *_, **__: {}["nothing"])

    monkeypatch.setattr(optlab.registry, "_ENTRIES", dict(optlab.registry._ENTRIES))
    optlab.register("broken", broken)
    with pytest.raises(configs.UserError) as caught:
        loop.train(load("--config.optimizer.name=broken"), str(tmp_path / "run"))
    message = str(caught.value)
    assert "optimizer broken" in message
    assert "KeyError: 'nothing' (test_program.py:" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_step_is_traced_once(mode):
    program = make_program(load(f"--config.mesh.mode={mode}"), trace=False)
    inner, calls = program.step, []

    def step(*arguments):
        calls.append(1)
        return inner(*arguments)

    program.step = step
    program.trace()
    assert len(calls) == 1
    rows = program.task.train_iterator(0)
    batch = program.layout.put((next(rows),))
    program.layout.compile_step(step, program.abstract, batch, program.peaks)
    assert len(calls) == (1 if mode == "jit" else 2)
