"""Own models, data, tasks and optimizers of a config file, in the runner."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import TypedDict, Unpack

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from experiments import config as configs
from experiments import data, models, points, tasks
from experiments.errors import UserError
from experiments.field_help import describe
from experiments.tasks.classification import Classification
from experiments.trainer import loop
from experiments.trainer.optimizer import make_optimizer, unused_fields
from experiments.trainer.program import make_program
from optlab.options import MatrixOptions

EXAMPLE = "docs/examples/own_model.py"
pytestmark = pytest.mark.usefixtures("own_files")


def example(*overrides):
    return configs.load(EXAMPLE, overrides)[0]


def test_own_files_train_are_swept_and_reported_from_another_folder(tmp_path):
    """The example of the documentation, with each command in a process."""
    root = pathlib.Path.cwd()
    assert len((root / EXAMPLE).read_text().splitlines()) <= 60
    shutil.copy(root / EXAMPLE, tmp_path / "own_model.py")
    swept = {
        "config": "own_model.py",
        "overrides": {"train.steps": 30, "train.eval_every": 30},
        "axes": {"model.kwargs.depth": [1, 2], "optimizer.kwargs.nesterov": [True]},
    }
    text = f"def get_sweep():\n    return {swept!r}\n"
    (tmp_path / "own_sweep.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(
        *("experiments.train", "--config=own_model.py", "--workdir=runs/a"),
        *("--config.model.width=16", "--config.task.kwargs.points=1000"),
    )
    first, *_, last = (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()
    assert json.loads(last)["val_loss"] < 0.5 * json.loads(first)["loss"]
    assert json.loads(last)["val_accuracy"] > 0.8
    recorded = json.loads((tmp_path / "runs/a/config.json").read_text())
    assert list(recorded["own_files"]) == [str(tmp_path.resolve() / "own_model.py")]
    run(
        *("experiments.sweep", "--sweep=own_sweep.py", "--workdir=runs/s"),
        *("--launcher=local", "--workers=2", "--launcher_options=threads=1"),
    )
    assert "sign_descent, cosine" in run("experiments.report", "runs/s")
    found = [json.loads(x.read_text()) for x in tmp_path.glob("runs/s/*/result.json")]
    assert [result["reason"] for result in found] == ["completed"] * 2


def test_own_choices_are_fields_like_others():
    config = example("--config.model.kwargs.depth=3", "--config.model.width=8")
    assert config.task.kwargs.to_dict() == {"points": 2000, "noise": 0.1}
    task = tasks.build(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    kernels = [shapes["layers"][str(i)]["kernel"].shape for i in range(4)]
    assert kernels == [(2, 8), (8, 8), (8, 8), (8, 3)]
    for override, part in {
        "model.kwargs.dept=3": r"model\.kwargs\.dept.*nearest: model\.kwargs\.depth",
        "model.kwargs.depth=x": r"model\.kwargs\.depth: given 'x', allowed int",
        "model.size=9M": r"model\.size: given '9M', model\.name=network has none",
        "model.name=netwrk": r"model\.name: .*nearest: network",
        "task.data=ring": r"task\.data: .*nearest: rings",
        "task.name=classify": r"task\.name: .*nearest: classification",
        "task.kwargs.noise=big": r"task\.kwargs\.noise: given 'big', allowed float",
    }.items():
        with pytest.raises(UserError, match=part):
            example(f"--config.{override}")
    for override, part in {
        "model.heads=3": r"model\.heads: given 3, model\.name=network has none",
        "model.remat=true": r"model\.remat: given True, model\.name=network has none",
        "model.name=llama": r"model\.name: given 'llama', allowed .*network with",
        "task.data=stdlib": r"task\.data: given 'stdlib', allowed .*rings with",
        "task.path=x": r"task\.path: given 'x', task\.data=rings has none",
        "optimizer.kwargs.foo=1": r"optimizer\.kwargs\.foo: given 1, TypeError",
    }.items():
        with pytest.raises(UserError, match=part):
            make_program(example(f"--config.{override}"))
    said = describe(EXAMPLE, ["--config.optimizer.kwargs.nesterov=true"])
    for line in (
        "Arguments of task.data=rings",
        "--config.task.kwargs.noise=0.1\n      standard deviation of the radius.",
        "--config.model.kwargs.depth=2",
        "--config.optimizer.kwargs.*",
    ):
        assert line in said


def test_a_name_belongs_to_one_file(tmp_path):
    example()
    edited = tmp_path / "own_model.py"
    shutil.copy(EXAMPLE, edited)
    with pytest.raises(UserError, match=r"'rings' is registered already") as caught:
        configs.load(str(edited))
    assert str(pathlib.Path(EXAMPLE).resolve()) in str(caught.value)
    assert str(edited) in str(caught.value)
    for register, name in ((models.register, "llama"), (data.register, "stdlib")):
        with pytest.raises(ValueError, match=f"'{name}' is registered already"):
            register(name, print, task="x")
    with pytest.raises(ValueError, match="'language_model' is registered already"):
        tasks.register("language_model", Classification)
    tasks.register("language_model", tasks.TASKS["language_model"])


def test_a_run_of_lists_of_layers_goes_on_as_it_was(tmp_path):
    """Eleven layers: as words, the tenth would come before the second."""
    words = ("--config.model.kwargs.depth=11", "--config.model.width=4")
    few = ("--config.task.kwargs.points=400", "--config.train.batch_size=8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    last = "--config.train.steps=6", "--config.schedule.name=constant"
    assert loop.train(example(*words, *few, *last), str(whole)) == 0
    first = "--config.train.steps=3", last[1]
    assert loop.train(example(*words, *few, *first), str(parts)) == 0
    config = example(*words, *few, *last)
    assert loop.train(config, str(parts), extend=True) == 0
    losses = [
        [
            json.loads(x)["loss"]
            for x in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (whole, parts)
    ]
    assert losses[0] == losses[1]
    program = make_program(config)
    inputs = np.ones((2, 1, 2, 1), np.float32)
    module = program.task.model
    params = module.init(jax.random.key(0))
    direct = models.MODELS["network"].factory(
        3, (1, 2, 1), width=4, depth=11, rngs=nnx.Rngs(params=jax.random.key(0))
    )
    np.testing.assert_allclose(module.apply(params, inputs), direct(inputs), rtol=1e-6)


class _Noisy(nnx.Module):
    def __init__(self, classes, shape, *, rngs):
        del shape
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.head = nnx.Linear(2, classes, rngs=rngs)


class _Plain:
    """A model without flax."""

    def __init__(self, classes, shape, scale=1.0):
        self.shape, self.scale = (int(np.prod(shape)), classes), scale

    def init(self, key):
        return {"head": self.scale * jax.random.normal(key, self.shape)}

    def apply(self, params, images):
        return images.reshape(len(images), -1) @ params["head"]


def test_models_of_any_kind_and_what_is_none():
    models.register("plain", _Plain, task="classification")
    models.register("noisy", _Noisy, task=("classification", "other"))
    models.register("nothing", lambda classes, shape: 3, task="classification")
    program = make_program(
        example("--config.model.name=plain", "--config.model.kwargs.scale=0.5")
    )
    assert program.abstract.params["head"].shape == (2, 3)
    for name, part in {
        "noisy": r"norm\.mean is a BatchStat, allowed nnx\.Param alone",
        "nothing": r"nothing makes a int, which has no init\(\)",
    }.items():
        with pytest.raises(UserError, match=part):
            make_program(example(f"--config.model.name={name}"))


def test_own_data_is_checked():
    x, y = np.zeros((4, 1, 2, 1), np.float32), np.arange(4, dtype=np.int32)
    for labels, classes, part in (
        (y, 3, "labels from 0 to 3, allowed 0 to 2"),
        (y[:3], 4, r"images \(4, 1, 2, 1\) and labels \(3,\)"),
    ):
        with pytest.raises(ValueError, match=part):
            data.Images(x, labels, x, y, classes=classes)
    with pytest.raises(ValueError, match="tokens from 0 to 3, allowed 0 to 2"):
        data.Corpus(train=(y,), validation=(y,), vocab_size=3)
    one, other = (
        data.Corpus(train=(part,), validation=(y,), vocab_size=4) for part in (y, y[1:])
    )
    assert one.digest != other.digest
    with pytest.raises(ValueError, match="the argument where needs a default"):
        data.register("asks", lambda where: None, task="x")
    data.register("needs", lambda path, limit=3: (path, limit), task="mine")
    config = configs.base()
    config.task.kwargs = {"limit": 4}
    config.task.update(name="mine", data="needs")
    with pytest.raises(ValueError, match=r"task\.path: missing"):
        data.load(config.task, "mine")
    config.task.path = "p"
    assert data.load(config.task, "mine") == ("p", 4)


class _Weighted(Classification):
    """The loss times a number."""

    def __init__(self, config, *, weight: float = 1.0):
        super().__init__(config)
        self.weight = weight

    def loss(self, params, batch, key):
        loss, parts = super().loss(params, batch, key)
        return self.weight * loss, parts


def test_own_tasks_have_arguments_and_are_swept(tmp_path):
    tasks.register("weighted", _Weighted)
    tasks.register("partial", lambda config: object())
    words = ("--config.task.name=weighted", "--config.task.kwargs.noise=0.2")
    config = example(*words, "--config.task.kwargs.weight=3")
    assert config.task.kwargs.to_dict() == {
        **{"points": 2000, "noise": 0.2, "weight": 3.0}
    }
    assert make_program(config).task.weight == 3.0
    with pytest.raises(UserError, match="partial makes a task without init"):
        make_program(example("--config.task.name=partial"))
    swept = {
        "config": EXAMPLE,
        "overrides": {"task.name": "weighted"},
        "axes": {"task.kwargs.weight": [1.0, 2.0]},
    }
    path = tmp_path / "swept.py"
    path.write_text(f"def get_sweep():\n    return {swept!r}\n")
    found = [point.config.task.kwargs.weight for point in points.load(str(path))]
    assert found == [1.0, 2.0]


def _typed(learning_rate, *, power: int = 2, **options: Unpack[MatrixOptions]):
    del power
    return optlab.cosmos(learning_rate, rank=2, **options)


class _Own(TypedDict, total=False):
    nesterov: bool
    accumulator_dtype: str | None


def _own(learning_rate, **options: Unpack[_Own]):
    return optax.sgd(learning_rate, 0.5, **options)


def _open(learning_rate, **options):
    return optax.sgd(learning_rate, **options)


@optlab.options.takes(MatrixOptions)
def _taken(learning_rate, **options: Unpack[MatrixOptions]):
    return optlab.cosmos(learning_rate, rank=2, **options)


def test_factories_with_options_offer_them(small):
    for factory in (_typed, _own, _open, _taken):
        optlab.register(factory.__name__, factory)

    def made(name, **changes):
        words = {f"optimizer__kwargs__{x}": value for x, value in changes.items()}
        config = small(optimizer__name=name, **words)
        make_program(config)
        tx, peaks = make_optimizer(config, tasks.build(config).roles)
        return config, tx, peaks

    config, _, peaks = made("_typed", adam_b1=0.5, power=3)
    assert config.optimizer.kwargs.adam_b1 == 0.5
    assert config.optimizer.kwargs.adam_b2 is None
    assert unused_fields(config) == []  # the decay and the roles are passed
    assert list(peaks) == ["learning_rate"]
    config, _, _ = made("_taken", adam_b1=0.5)
    assert config.optimizer.kwargs.adam_b2 == 0.95
    config, _, _ = made("_own", nesterov=True)
    assert config.optimizer.kwargs.nesterov is True
    assert unused_fields(config) == ["optimizer.weight_decay"]
    config, tx, _ = made("_open", momentum=0.5, nesterov="true")
    assert config.optimizer.kwargs.to_dict() == {"momentum": 0.5, "nesterov": True}
    params = {"w": np.float32([1.0])}
    state = tx.init(params)
    for expected in (1.5, 1.75):  # 1 + b, then 1 + b + b^2
        updates, state = tx.update(params, state, params)
        np.testing.assert_allclose(updates["w"], -expected)
    with pytest.raises(UserError, match=r"kwargs\.nestrov.*nearest"):
        made("_own", nestrov=True)
