"""ResNet against SciPy's convolution, the MLP against a loop, counts and roles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

import optlab
from experiments import config as configs
from experiments.models import MODELS


def build(name, outputs=10, inputs=(32, 32, 3), **changes):
    config = configs.base().model
    config.name = name
    for field, value in changes.items():
        config[field] = value
    return MODELS[name](config, outputs, inputs)


def perturbed(model):
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32),
        jax.jit(model.init)(jax.random.key(1)),
    )


def convolve(image, kernel, stride):
    """Cross-correlation with one pixel of zeros around; then every n-th pixel."""
    out = np.zeros((*image.shape[:2], kernel.shape[-1]))
    for i in range(kernel.shape[2]):
        for o in range(kernel.shape[3]):
            plane = signal.correlate2d(image[:, :, i], kernel[:, :, i, o], "same")
            out[:, :, o] += plane
    return out[::stride, ::stride]


def norm(x, part):
    channels = x.shape[-1]
    for group in np.split(np.arange(channels), np.gcd(8, channels)):
        values = x[..., group]
        x[..., group] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    return x * part["scale"] + part["bias"]


def block(x, part, stride):
    inner = np.maximum(norm(convolve(x, part["conv1"], stride), part["norm1"]), 0)
    inner = norm(convolve(inner, part["conv2"], 1), part["norm2"])
    inner[..., : x.shape[-1]] += x[::stride, ::stride]
    return np.maximum(inner, 0)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_residual_network_equals_a_loop(layers):
    model = build("resnet", inputs=(8, 8, 2), outputs=3, width=4, layers=layers)
    params = perturbed(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    plain = jax.tree.map(np.asarray, params)
    expected = []
    for image in images:
        x = np.maximum(norm(convolve(image, plain["stem"], 1), plain["norm"]), 0)
        for stage, stride in (("stage1", 1), ("stage2", 2), ("stage3", 2)):
            x = block(x, plain[stage]["first"], stride)
            for i in range(layers - 1):
                rest = plain[stage]["rest"]
                x = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], rest), 1)
        expected.append(x.mean((0, 1)) @ plain["head"] + plain["head_bias"])
    got = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def test_the_perceptron_equals_a_loop():
    model = build("mlp", inputs=(4, 4, 1), width=5, layers=2)
    params = perturbed(model)
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    plain = jax.tree.map(np.asarray, params)
    x = images.reshape(3, 16) @ plain["embed"]["kernel"] + plain["embed"]["bias"]
    for i in range(2):
        x = np.maximum(x, 0) @ plain["layers"]["kernel"][i] + plain["layers"]["bias"][i]
    expected = np.maximum(x, 0) @ plain["head"] + plain["head_bias"]
    np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "parameters", "paper"),
    # He et al. 2016, table 6, in millions.
    [
        ("20", 269_722, 0.27),
        ("32", 464_154, 0.46),
        ("44", 658_586, 0.66),
        ("56", 853_018, 0.85),
    ],
)
def test_parameter_counts_of_resnet(size, parameters, paper):
    model = build("resnet", size=size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == parameters
    assert round(count / 1e6, 2) == paper
    assert 6 * model.size.layers + 2 == int(size)


@pytest.mark.parametrize(("size", "deit"), [("ti", 5.7), ("s", 22.1)])
def test_parameter_counts_of_vit(size, deit):
    """DeiT's at 224 pixels in patches of 16 with 1000 classes and a class token."""
    model = build("vit", size=size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    width = model.size.width
    ours = (3 * 4 * 4 + 64 + 10) * width + 10
    theirs = (3 * 16 * 16 + 197 + 1 + 1000) * width + 1000
    assert round((count - ours + theirs) / 1e6, 1) == deit


@pytest.mark.parametrize("name", ["resnet", "vit", "mlp"])
def test_bfloat16_and_roles(name):
    model = build(name, size="tiny", dtype="bfloat16")
    params = jax.jit(model.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    logits = jax.jit(model.apply)(params, images)
    assert logits.dtype == jnp.bfloat16
    exact = jax.jit(build(name, size="tiny").apply)(params, images)
    np.testing.assert_allclose(logits.astype(np.float32), exact, atol=0.15)
    rule = optlab.default_roles(stacked=model.stacked, embeddings=model.embeddings)
    table = optlab.describe(params, rule)
    roles = {row.path: row.role for row in table}
    assert roles["head"] == "embedding"
    matrices = {
        "resnet": {
            f"stage{i}/{part}/conv{j}"
            for i in (1, 2, 3)
            for part in ("first", "rest")
            for j in (1, 2)
        },
        "vit": {
            *(f"layers/attention/{leaf}" for leaf in ("query", "key", "value", "out")),
            *("layers/mlp/up", "layers/mlp/down"),
        },
        "mlp": {"layers/kernel"},
    }[name]
    assert {path for path, role in roles.items() if "matri" in role} == matrices
    assert "embedding" in {
        roles.get("stem"),
        roles.get("embed"),
        roles.get("embed/kernel"),
    }
