"""Every task through the training loop, and its losses against NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments.data.order import Process
from experiments.tasks import TASKS
from experiments.tasks.classification import augment
from experiments.trainer import loop


def load(file, **changes):
    words = [f"--config.{name.replace('__', '.')}={v}" for name, v in changes.items()]
    return configs.load(f"configs/{file}.py", words)[0]


def test_the_language_models_loss_is_the_cross_entropy(small):
    task = TASKS["language_model"](small(model__z_loss=0.01))
    params = task.init(jax.random.key(0))
    batch = next(task.train_iterator(0))
    assert batch.shape == (8, 17)
    logits = np.asarray(task.model.apply(params, batch[:, :-1]), np.float64)
    normalizer = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, batch[:, 1:, None].astype(int), -1)[..., 0]
    expected = (normalizer - chosen).mean()
    metrics = task.eval_metrics(params, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    loss, aux = task.loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(aux["z_loss"], 0.01 * (normalizer**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, expected + aux["z_loss"], rtol=1e-5)
    share = next(task.train_iterator(0, Process(1, 2)))
    np.testing.assert_array_equal(share, batch[4:])


def test_classification_of_digits():
    config = load("digits")
    task = TASKS["classification"](config)
    params = task.init(jax.random.key(0))
    batch = next(task.train_iterator(0))
    normal = task._normalized(batch["image"])
    images = batch["image"].astype(np.float64)
    expected = (images - task._mean) / task._deviation
    np.testing.assert_allclose(normal, expected, rtol=1e-4, atol=1e-5)
    logits = np.asarray(task.model.apply(params, normal), np.float64)
    chosen = logits[np.arange(len(logits)), batch["label"]]
    expected = (np.log(np.exp(logits).sum(-1)) - chosen).mean()
    loss, aux = task.loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    right = (logits.argmax(-1) == batch["label"]).mean()
    np.testing.assert_allclose(aux["accuracy"], right, rtol=1e-6)
    metrics = task.eval_metrics(params, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    assert len(task.digest) == 64


def test_augmented_images_are_crops_and_mirrors():
    images = jnp.arange(1.0, 1 + 64 * 6 * 6).reshape(64, 6, 6, 1)
    made = np.asarray(jax.jit(augment)(images, jax.random.key(0)))
    padded = np.pad(np.asarray(images), ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for image, source in zip(made, padded, strict=True):
        places = [
            (row, column, mirrored)
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
            if (
                source[row : row + 6, column : column + 6][:, :: 1 - 2 * mirrored]
                == image
            ).all()
        ]
        assert places
        seen.add(places[0])
    assert len(seen) > 30
    assert {place[2] for place in seen} == {False, True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task__data": "cifar10"}, r"task\.path: missing, task\.data=cifar10"),
        (
            {"task__name": "language_model", "task__augment": True},
            r"task\.augment: given True, task\.name=language_model has none",
        ),
        (
            {"task__data": "stdlib"},
            r"task\.data: given 'stdlib', allowed digits",
        ),
        ({"model__name": "llama"}, r"model\.name: given 'llama', allowed resnet, vit"),
        ({"model__heads": 2}, r"model\.heads: given 2, model\.name=mlp has none"),
        (
            {"task__data": "cifar10", "task__path": "x.gz"},
            r"task\.path: no file 'x.gz'",
        ),
    ],
)
def test_a_task_refuses_by_the_name_of_the_field(tmp_path, fields, message):
    config = load("digits", **fields)
    with pytest.raises(configs.UserError, match=f"--config: {message}") as caught:
        loop.train(config, str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_digits_are_learned(tmp_path):
    config = load("digits", train__steps=60, train__eval_every=60)
    assert loop.train(config, str(tmp_path)) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert first["accuracy"] < 0.4
    assert last["accuracy"] > 0.9
    assert last["val_loss"] < 0.3
    assert last["tokens"] == 60 * config.train.batch_size


def test_shards_are_trained_on(tmp_path, small):
    rng = np.random.default_rng(0)
    for name, size in (("train_0.bin", 5000), ("val_0.bin", 600)):
        rng.integers(0, 50, size).astype(np.uint16).tofile(tmp_path / name)
    config = small(
        task__data="shards",
        task__path=str(tmp_path),
        task__vocab_size=50,
        model__name="gpt2",
        train__steps=3,
    )
    assert loop.train(config, str(tmp_path / "run")) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert abs(json.loads(lines[0])["loss"] - np.log(50)) < 1
