"""LLaMA, GPT-2 and ViT against plain loops over layers, windows and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments.models import MODELS, gpt2, llama
from experiments.tasks.logits import largest_logits

SMALL = {"width": 16, "layers": 3, "heads": 2, "hidden": 24}
FAMILIES = ["llama", "gpt2"]


def build(name="llama", outputs=11, inputs=8, **changes):
    config = configs.base().model
    config.name = name
    for field, value in (SMALL | changes).items():
        config[field] = value
    return MODELS[name](config, outputs, inputs)


def perturbed(model):
    """Parameters with scales and biases that differ: a misplaced one shows."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32),
        jax.jit(model.init)(jax.random.key(1)),
    )


def norm(x, part):
    if "bias" not in part:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * part["scale"]
    x = x - x.mean(-1, keepdims=True)
    normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return normal * part["scale"] + part["bias"]


def mlp(x, part):
    if "gate" in part:
        gate = x @ part["gate"]
        return (gate / (1 + np.exp(-gate)) * (x @ part["up"])) @ part["down"]
    x = x @ part["up"] + part["up_bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ part["down"] + part["down_bias"]


def blocks(x, layers, heads, *, rotary, causal, largest):
    """The residual stream `(time, width)` after all layers.

    The largest absolute score of each layer goes into `largest`.
    """
    time, width = x.shape
    size = width // heads
    turn = 1.0
    if rotary:
        rates = 10_000.0 ** (-np.arange(size // 2) / (size // 2))
        turn = np.exp(1j * np.arange(time)[:, None] * rates)
    for i in range(SMALL["layers"]):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        attention = layer["attention"]
        normed = norm(x, layer["attention_norm"])
        outputs, seen = [], []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (
                normed @ attention[name][:, part]
                + attention.get(f"{name}_bias", np.zeros(width))[part]
                for name in ("query", "key", "value")
            )
            if "query_norm" in attention:
                q, k = norm(q, attention["query_norm"]), norm(k, attention["key_norm"])
            q, k = ((y[:, : size // 2] + 1j * y[:, size // 2 :]) * turn for y in (q, k))
            scores = (q @ k.conj().T).real / np.sqrt(size)
            if causal:
                scores[np.triu_indices(time, 1)] = -np.inf
            seen.append(np.abs(scores[np.isfinite(scores)]).max())
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ v)
        largest.append(max(seen))
        x = x + np.concatenate(outputs, -1) @ attention["out"]
        x = x + attention.get("out_bias", 0.0)
        x = x + mlp(norm(x, layer["mlp_norm"]), layer["mlp"])
    return x


def decoder(params, tokens, heads, largest):
    """Logits of one window."""
    x = params["embed"][tokens]
    learned = "positions" in params
    if learned:
        x = x + params["positions"][: len(tokens)]
    x = blocks(
        x, params["layers"], heads, rotary=not learned, causal=True, largest=largest
    )
    return norm(x, params["norm"]) @ params.get("head", params["embed"].T)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"tied": True, "qk_norm": True}),
        ("gpt2", {}),
        ("gpt2", {"tied": False, "qk_norm": True}),
    ],
    ids=str,
)
def test_a_scan_of_layers_equals_a_loop(name, options):
    model = build(name, **options)
    params = perturbed(model)
    assert ("head" in params) == (options.get("tied", name == "gpt2") is False)
    tokens = np.array([[1, 5, 2, 10, 0, 3, 3], [4, 4, 4, 9, 1, 0, 2]])
    plain = jax.tree.map(np.asarray, params)
    largest = [[] for _ in tokens]
    expected = np.stack(
        [decoder(plain, t, 2, own) for t, own in zip(tokens, largest, strict=True)]
    )
    got, logits = jax.jit(lambda *x: (model.apply(*x), largest_logits(model, *x)))(
        params, tokens
    )
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
    attention = logits["largest_attention_logit"]["layers"]
    np.testing.assert_allclose(attention, np.max(largest, 0), rtol=2e-4)
    output = logits["largest_output_logit"]["logits"]
    np.testing.assert_allclose(output, np.abs(expected).max(), rtol=2e-4)


@pytest.mark.parametrize("option", ["remat", "unroll"])
@pytest.mark.parametrize("name", FAMILIES)
def test_layers_compiled_otherwise_give_the_same_gradient(name, option):
    tokens = np.array([[1, 5, 2, 10]])

    def loss(params, model):
        return jnp.sum(jnp.square(model.apply(params, tokens)))

    model, again = build(name), build(name, **{option: True})
    params = jax.jit(model.init)(jax.random.key(0))
    kept = jax.jit(jax.grad(loss), static_argnums=1)(params, model)
    otherwise = jax.jit(jax.grad(loss), static_argnums=1)(params, again)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        *(kept, otherwise),
    )
    traced = jax.jit(again.apply).trace(params, tokens)
    if option == "remat":
        assert "remat" in str(traced.jaxpr)
    else:
        assert "stablehlo.while" not in traced.lower().as_text()


def test_the_vision_transformer_equals_a_loop():
    model = build("vit", inputs=(16, 8, 3))
    params = perturbed(model)
    images = np.random.default_rng(0).normal(size=(2, 16, 8, 3)).astype(np.float32)
    plain = jax.tree.map(np.asarray, params)
    expected, largest = [], []
    for image in images:
        patches = [image[2 * i : 2 * i + 2, j] for i in range(8) for j in range(8)]
        x = np.stack([patch.ravel() for patch in patches]) @ plain["embed"]
        x = x + plain["embed_bias"] + plain["positions"]
        largest.append([])
        x = blocks(
            *(x, plain["layers"], 2), rotary=False, causal=False, largest=largest[-1]
        )
        x = norm(x, plain["norm"]).mean(0)
        expected.append(x @ plain["head"] + plain["head_bias"])
    got, attention = jax.jit(
        lambda *x: (model.apply(*x), model.with_attention_logits(*x)[1])
    )(params, images)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(attention, np.max(largest, 0), rtol=2e-4)
    with pytest.raises(ValueError, match="not 12 by 8"):
        build("vit", inputs=(12, 8, 3))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_logit_sees_the_future(name):
    model = build(name)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    before = model.apply(params, tokens)
    after = model.apply(params, tokens.at[0, 3].set(9))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before[:, 3:] - after[:, 3:]).max(-1) > 1e-4).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_of_activations_only(name):
    model = build(name, dtype="bfloat16")
    params = jax.jit(model.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens = jnp.array([[1, 2, 3, 4]])
    logits = model.apply(params, tokens)
    assert logits.dtype == jnp.bfloat16
    exact = build(name).apply(params, tokens)
    np.testing.assert_allclose(logits.astype(np.float32), exact, atol=0.1)


def count(name, size, outputs, inputs):
    config = configs.base().model
    config.name, config.size = name, size
    model = MODELS[name](config, outputs, inputs)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("size", "millions"),
    # With LLaMA's 32,000 tokens these are the sizes that the papers' names round.
    [
        ("9M", 9.00),
        ("20M", 19.55),
        ("60M", 58.07),
        ("130M", 134.11),
        ("350M", 367.97),
        ("1B", 1339.08),
    ],
)
def test_parameter_counts_of_llama(size, millions):
    got = count("llama", size, 32_000, 256)
    width, layers, _, hidden = llama.SIZES[size]
    per_layer = 4 * width**2 + 3 * width * hidden + 2 * width
    assert got == layers * per_layer + 2 * 32_000 * width + width
    assert round(got / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("size", "parameters"),
    # Of the released checkpoints: 50,257 tokens, 1,024 places, a tied head.
    [
        ("small", 124_439_808),
        ("medium", 354_823_168),
        ("large", 774_030_080),
        ("xl", 1_557_611_200),
    ],
)
def test_parameter_counts_of_gpt2(size, parameters):
    assert count("gpt2", size, 50_257, 1024) == parameters
    assert gpt2.SIZES[size].hidden == 4 * gpt2.SIZES[size].width


@pytest.mark.parametrize("name", FAMILIES)
def test_roles_and_initial_scales(name):
    model = build(name, width=64, heads=2, hidden=96, tied=False)
    params = jax.jit(model.init)(jax.random.key(0))
    rule = optlab.default_roles(stacked=model.stacked, embeddings=model.embeddings)
    roles = optlab.roles.tree_roles(params, rule)
    layers = roles["layers"]["attention"] | roles["layers"]["mlp"]
    for leaf, role in layers.items():
        vector = leaf.endswith("bias")
        assert role == (optlab.VECTOR if vector else optlab.Matrix((1,), (2,))), leaf
    tables = {"embed", "head", "positions"} & roles.keys()
    for table in tables:
        assert roles[table] == optlab.Embedding(1 if table == "head" else 0)
    vectors = jax.tree.leaves([roles["norm"], roles["layers"]["mlp_norm"]])
    assert set(vectors) == {optlab.VECTOR}
    layers = params["layers"]
    for leaf, scale in (
        (layers["attention"]["query"], 1 / 8),
        (layers["attention"]["out"], 1 / 8 / np.sqrt(6)),
        (layers["mlp"]["down"], 1 / np.sqrt(96 * 6)),
        *((params[table], 1 / 8) for table in tables),
    ):
        np.testing.assert_allclose(jnp.std(leaf), scale, rtol=0.1)
    assert not (layers["mlp"]["up"][0] == layers["mlp"]["up"][1]).any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"heads": 3}, r"model\.heads: given 3, .* model\.width=16 / 2"),
        (
            "gpt2",
            {"heads": 3},
            r"model\.heads: given 3, .* divisor of model\.width=16$",
        ),
        ("gpt2", {"size": "60M"}, r"model\.size: given '60M', allowed tiny, small"),
        ("vit", {"tied": True}, r"model\.tied: given True, model\.name=vit has none"),
    ],
)
def test_what_a_family_has_not_is_named(name, changes, message):
    inputs = (8, 8, 1) if name == "vit" else 8
    with pytest.raises(ValueError, match=message):
        build(name, inputs=inputs, **changes)
