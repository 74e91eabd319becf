import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments.models import llama


def build(vocab_size=11, **changes):
    config = configs.base().model
    small = {"width": 16, "layers": 3, "heads": 2, "hidden": 24}
    for name, value in (small | changes).items():
        config[name] = value
    return llama.Llama(config, vocab_size, context=8)


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def reference(params, tokens, heads):
    """The model in NumPy, layer by layer, head by head, one window."""
    x = np.asarray(params["embed"])[tokens]
    time, width = x.shape
    size = width // heads
    pairs = np.arange(time)[:, None] * 10_000.0 ** (-np.arange(size // 2) / (size // 2))
    turn = np.exp(1j * pairs)
    layers = jax.tree.map(np.asarray, params["layers"])
    for i in range(layers["mlp"]["up"].shape[0]):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        attention, mlp = layer["attention"], layer["mlp"]
        normed = rms_norm(x, layer["attention_norm"]["scale"])
        outputs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (
                normed @ attention[name][:, part] for name in ("query", "key", "value")
            )
            if "query_norm" in attention:
                q = rms_norm(q, attention["query_norm"]["scale"])
                k = rms_norm(k, attention["key_norm"]["scale"])
            q, k = ((y[:, : size // 2] + 1j * y[:, size // 2 :]) * turn for y in (q, k))
            scores = (q @ k.conj().T).real / np.sqrt(size)
            scores[np.triu_indices(time, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = x + np.concatenate(outputs, -1) @ attention["out"]
        normed = rms_norm(x, layer["mlp_norm"]["scale"])
        gate = normed @ mlp["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ mlp["up"])) @ mlp["down"]
    head = params["head"] if "head" in params else np.asarray(params["embed"]).T
    return rms_norm(x, np.asarray(params["norm"]["scale"])) @ np.asarray(head)


@pytest.mark.parametrize("options", [{}, {"tied": True, "qk_norm": True}], ids=str)
def test_logits_equal_a_plain_loop_over_layers_and_heads(options):
    model = build(**options)
    params = model.init(jax.random.key(1))
    # Scales that differ, so that a missing or misplaced one shows.
    keys = iter(jax.random.split(jax.random.key(2), 99))
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params
    )
    tokens = np.array([[1, 5, 2, 10, 0, 3, 3], [4, 4, 4, 9, 1, 0, 2]])
    expected = np.stack([reference(params, window, 2) for window in tokens])
    got = jax.jit(model.apply)(params, tokens)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
    again = jax.jit(build(remat=True, **options).apply)(params, tokens)
    np.testing.assert_allclose(again, got, rtol=1e-5, atol=1e-6)


def test_no_logit_sees_the_future():
    model = build()
    params = model.init(jax.random.key(0))
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    before = model.apply(params, tokens)
    after = model.apply(params, tokens.at[0, 3].set(9))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before[:, 3:] - after[:, 3:]).max(-1) > 1e-4).all()


def test_bfloat16_is_of_activations_only():
    model = build(dtype="bfloat16")
    params = model.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens = jnp.array([[1, 2, 3, 4]])
    logits = model.apply(params, tokens)
    assert logits.dtype == jnp.bfloat16
    exact = build().apply(params, tokens)
    np.testing.assert_allclose(logits.astype(np.float32), exact, atol=0.1)


@pytest.mark.parametrize(
    ("size", "millions"),
    # With LLaMA's 32,000 tokens these are the sizes that the papers' names round.
    [("9M", 9), ("20M", 20), ("60M", 58), ("130M", 134), ("350M", 368), ("1B", 1339)],
)
def test_parameter_counts(size, millions):
    config = configs.base().model
    config.size = size
    params = jax.eval_shape(llama.Llama(config, 32_000, 256).init, jax.random.key(0))
    width, layers, _, hidden = llama.SIZES[size]
    per_layer = 4 * width**2 + 3 * width * hidden + 2 * width
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == layers * per_layer + 2 * 32_000 * width + width
    assert round(count / 1e6) == millions


def test_roles_and_initial_scales():
    model = build(width=64, heads=2, hidden=96)
    params = model.init(jax.random.key(0))
    rule = optlab.default_roles(stacked=model.stacked, embeddings=model.embeddings)
    roles = jax.tree_util.tree_map_with_path(rule, params)
    matrices = [
        *roles["layers"]["attention"].values(),
        *roles["layers"]["mlp"].values(),
    ]
    assert matrices == [optlab.Matrix((1,), (2,))] * 7
    assert roles["embed"] == roles["head"] == optlab.EMBEDDING
    scales = [roles["norm"], roles["layers"]["mlp_norm"]]
    assert scales == [{"scale": optlab.VECTOR}] * 2
    layers = params["layers"]
    for leaf, scale in (
        (layers["attention"]["query"], 1 / 8),
        (layers["attention"]["out"], 1 / 8 / np.sqrt(6)),
        (layers["mlp"]["down"], 1 / np.sqrt(96 * 6)),
        (params["head"], 1 / 8),
        (params["embed"], 1 / 8),
    ):
        np.testing.assert_allclose(jnp.std(leaf), scale, rtol=0.1)
    assert not (layers["mlp"]["up"][0] == layers["mlp"]["up"][1]).any()


def test_heads_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"model\.heads: given 3"):
        build(heads=3)
