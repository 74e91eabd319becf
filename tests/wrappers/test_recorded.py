"""The recorded runs of the authors' code, and of what was measured on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.matrices import lowbit
from tests.golden import follow, load

STACKED = optlab.default_roles(stacked=("^stack",))
# What stands in the data beside the arguments.
NOTES = ("optimizer", "inner", "rescale", "source", "first_step")


def arguments(data):
    return {k: v for k, v in data.meta.items() if k not in NOTES}


def inner(data):
    return optlab.registry.get(data.meta["inner"]).factory


def cautious(data):
    return optlab.cautious(inner(data)(**arguments(data)), rescale=data.meta["rescale"])


def cautious_by_hand(data):
    """optax's own direction, masked, with decay and rate behind it."""
    kwargs = arguments(data)
    rate, decay = kwargs.pop("learning_rate"), kwargs.pop("weight_decay")
    scale = {"adamw": optax.scale_by_adam, "lion": optax.scale_by_lion}
    direction = scale[data.meta["inner"]](**kwargs)
    return optax.chain(
        optlab.cautious(direction, rescale=data.meta["rescale"]),
        optax.add_decayed_weights(decay),
        optax.scale(-rate),
    )


def cautious_decay(data):
    return inner(data)(**arguments(data), cautious_decay=True)


# Name of the file -> the optimizer, and how far it may be from the recording. What is
# in klsoap_b is ill-conditioned in float64 too.
RUNS = {
    "normuon": ("normuon_a", lambda d: optlab.normuon(**arguments(d)), 1e-9),
    "muon_h": (
        "hyperball_muon_a",
        lambda d: optlab.muon_h(**arguments(d), roles=STACKED),
        1e-12,
    ),
    "adam_h": (
        "hyperball_adam_a",
        lambda d: optlab.adam_h(**arguments(d), roles=STACKED),
        1e-12,
    ),
    "cautious adamw": ("cautious_a", cautious, 1e-12),
    "cautious lion": ("cautious_b", cautious, 1e-12),
    "cautious adam, optax's": ("cautious_a", cautious_by_hand, 1e-12),
    "cautious lion, optax's": ("cautious_b", cautious_by_hand, 1e-12),
    "cautious decay, adamw": ("cautious_decay_a", cautious_decay, 1e-12),
    "cautious decay, lion": ("cautious_decay_b", cautious_decay, 1e-12),
    "kl_v3": (
        "klsoap_a",
        lambda d: optlab.soap(**arguments(d), factors="kl_v3"),
        1e-12,
    ),
    "kl_v3, small eps": (
        "klsoap_b",
        lambda d: optlab.soap(**arguments(d), factors="kl_v3"),
        1e-6,
    ),
    "rekls_v3": (
        "rekls_a",
        lambda d: optlab.soap(**arguments(d), factors="rekls_v3"),
        1e-12,
    ),
    "soap_h, kl": (
        "klsoap_h_a",
        lambda d: optlab.soap_h(**arguments(d), factors="kl"),
        1e-12,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_follows_the_authors_code_in_float64(name, x64):
    del x64
    file, make, bound = RUNS[name]
    data = load(file)
    assert follow(make(data), data) < bound


@pytest.mark.parametrize("name", ["normuon", "muon_h", "cautious adamw"])
def test_follows_the_authors_code_in_float32(name):
    file, make, _ = RUNS[name]
    data = load(file)
    assert follow(make(data), data) < 1e-3


def test_codes_of_moments_are_those_of_flashoptim_to_the_bit():
    data = load("quantized_state_a")
    for name in ("mu", "nu", "mu_linear", "nu_softsign"):
        meta, given = data.meta[name], data.arrays
        how = {"softsign": meta["softsign"], "sqrt": meta["sqrt"]}
        signed = meta["codes"] == "int8"

        @jax.jit
        def there_and_back(x, how=how, signed=signed):
            codes, scales = lowbit.quantize(x, signed=signed, **how)
            decoded = lowbit.dequantize(codes, scales, **how)
            again, _ = lowbit.quantize(decoded, signed=signed, **how)
            return {
                "codes": codes,
                "scales": scales,
                "decoded": decoded,
                "codes_again": again,
            }

        found = there_and_back(jnp.asarray(given[f"{name}/x"]))
        for field, value in found.items():
            expected = given[f"{name}/{field}"]
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected, f"{name}/{field}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("bits", "word"), [(8, "24"), (16, "32")])
def test_split_weights_are_those_of_flashoptim(dtype, bits, word):
    data = load("split_weights_a").arrays
    x = jnp.asarray(data[f"{dtype}/x"])
    weights, codes = jax.jit(lambda x: lowbit.split(x, jnp.dtype(dtype), bits))(x)
    expected = data[f"{dtype}/weights"]
    np.testing.assert_array_equal(weights.astype(jnp.float32), expected)
    np.testing.assert_array_equal(codes, data[f"{dtype}/correction{word}"])
    joined = jax.jit(lowbit.join)(weights, codes)
    np.testing.assert_allclose(joined, data[f"{dtype}/decoded{word}"], rtol=2e-7)


def cosines(factors, initial, steps, scale=1.0, **kwargs):
    """Of the left factor to the gradients' covariance, here the identity times n."""
    rng = np.random.default_rng(0)
    tx = optlab.scale_by_soap(
        factors=factors, precondition_interval=1, initial_eigenvalue=initial, **kwargs
    )
    n = 16
    root = np.diag(np.arange(1, n + 1) ** -0.75)
    update, state = jax.jit(tx.update), tx.init({"w": jnp.zeros((n, n))})
    found, directions = [], []
    for _ in range(steps):
        g = jnp.asarray(scale * root @ rng.standard_normal((n, n)), jnp.float32)
        u, state = update({"w": g}, state)
        left, true = np.asarray(state.gram_left["w"], np.float64), root @ root
        found.append(np.sum(left * true) / np.linalg.norm(left) / np.linalg.norm(true))
        directions.append(u["w"])
    return found, directions


def test_the_start_of_kl_factors_is_free_of_the_gradients_scale():
    small, directions = cosines("kl", None, 12, eps=0.0)
    large, scaled = cosines("kl", None, 12, scale=1e3, eps=0.0)
    np.testing.assert_allclose(small, large, rtol=1e-4)
    for a, b in zip(directions[1:4], scaled[1:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3)
    # V3's factor stays that of the first gradient: later terms are smaller by 1e8.
    frozen, _ = cosines("kl_v3", None, 12)
    assert small[-1] > small[0] and small[-1] > 0.9
    assert abs(frozen[-1] - frozen[0]) < 1e-3 and frozen[-1] < small[-1]
