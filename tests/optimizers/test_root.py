"""ROOT against the authors' recorded trajectories; the threshold; the coefficients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import sharding
from optlab.matrices import quantiles
from tests.golden import follow, load


@pytest.mark.parametrize("name", ["root_a", "root_b"])
def test_follows_the_authors_code_in_float64(name, x64):
    data = load(name)
    arguments = dict(data.meta)
    for fixed in ("optimizer", "rms_scale"):
        arguments.pop(fixed)
    assert follow(optlab.root(**arguments), data) < 1e-9


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize(
    "shape", [(2, 7, 9), (3, 1, 1), (1, 10, 11), (2, 200, 3), (1, 131, 2)]
)
def test_the_quantile_is_numpys(q, shape):
    x = np.abs(gaussian(*shape))
    x.flat[::3] = x.flat[0]  # ties
    x.flat[1::4] = 0
    result = quantiles.quantile(jnp.asarray(x), q)
    assert result.shape == (shape[0], 1, 1)
    expected = np.quantile(x.reshape(shape[0], -1).astype(np.float64), q, axis=1)
    # Between two entries their mean is rounded once more than NumPy's.
    between = int(q * (x[0].size - 1) % 1 > 0)
    expected = expected.astype(np.float32)
    np.testing.assert_array_max_ulp(result[:, 0, 0], expected, between)


@pytest.mark.parametrize("rank", [0, 1, 17, 31, 50, 61, 62])
def test_the_quantile_at_an_entry_is_the_entry(rank):
    x = np.abs(gaussian(5, 7, 9))
    result = quantiles.quantile(jnp.asarray(x), rank / 62)
    expected = np.sort(x.reshape(5, -1))[:, rank]
    np.testing.assert_array_equal(result[:, 0, 0], expected)


def test_a_quantile_sees_every_entry_in_one_rounding():
    """What loops get is made once; other programs may make it twice, and differ."""
    x = jnp.abs(gaussian(2, 7, 9))
    (call,) = jax.make_jaxpr(lambda x: quantiles.quantile(x, 0.9))(x).eqns
    jaxpr = call.params["call_jaxpr"].jaxpr
    (made,) = (e for e in jaxpr.eqns if jaxpr.invars[0] in e.invars)
    assert made.primitive.name == "bitcast_convert_type"
    users = [e.primitive.name for e in jaxpr.eqns if made.outvars[0] in e.invars]
    # Of the slice only its shape is of interest.
    assert users == ["slice", "scan", "scan"]


def test_nothing_is_sorted_on_one_device_or_over_a_mesh():
    distribute = sharding.over_mesh(sharding.make_mesh({"data": 8}), "data")
    grads = {"w": jnp.asarray(gaussian(6, 9)), "v": jnp.asarray(gaussian(9, 6))}

    def sorts(f, *arguments):
        return re.search(r"\b(sort|top_k)\[", str(jax.make_jaxpr(f)(*arguments)))

    assert sorts(jnp.sort, grads["w"])
    clipped = []
    for apart in (None, distribute):
        tx = optlab.scale_by_root(distribute=apart)
        assert not sorts(tx.update, grads, tx.init(grads))
        tx = optlab.clip_outliers(distribute=apart)
        clipped.append(jax.jit(tx.update)(grads, tx.init(grads))[0])
    jax.tree.map(np.testing.assert_array_equal, *clipped)


def test_the_quantile_of_extreme_values(x64):
    x = np.array([[0.0, 5e-324, 1e-308, 1.0, 1.7e308]])
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert quantiles.quantile(jnp.asarray(x), q) == np.quantile(x, q)


def test_clip_outliers_clips_matrices_and_nothing_else():
    params = {
        "w": gaussian(4, 9),
        "conv": gaussian(3, 3, 2, 5),
        "embed": gaussian(9, 4),
        "bias": gaussian(9),
    }
    tx = optlab.clip_outliers(0.8)
    clipped, _ = tx.update(params, tx.init(params))
    for key in ("w", "conv"):
        bound = np.quantile(np.abs(params[key]), 0.8)
        np.testing.assert_allclose(
            clipped[key], np.clip(params[key], -bound, bound), rtol=1e-6
        )
    for key in ("embed", "bias"):
        np.testing.assert_array_equal(clipped[key], params[key])
    same, _ = optlab.clip_outliers(1.0).update(params, tx.init(params))
    np.testing.assert_allclose(same["w"], params["w"])


def test_an_outlier_moves_the_update_less_than_muons():
    """What the threshold is for: one huge entry does not own the whole step."""
    clean = {"w": jnp.asarray(gaussian(16, 24))}
    corrupt = {"w": clean["w"].at[3, 5].set(1e4)}

    def step(tx, grads):
        return np.ravel(tx.update(grads, tx.init(clean), clean)[0]["w"])

    def cosine(tx):
        a, b = step(tx, clean), step(tx, corrupt)
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine(optlab.root(1e-2)) > 0.95
    assert cosine(optlab.muon(1e-2)) < 0.8


def test_coefficients_by_shape_by_triple_and_fitted():
    params = {"wide": jnp.asarray(gaussian(4, 9)), "tall": jnp.asarray(gaussian(9, 4))}

    def step(coeffs):
        tx = optlab.root(1e-2, ns_coeffs=coeffs)
        return tx.update(params, tx.init(params), params)[0]

    triple = optlab.fit_coefficients((4, 9), 5)
    expected = step(triple)
    for given in ({(4, 9): triple}, {(9, 4): triple}, [triple] * 5):
        jax.tree.map(np.testing.assert_array_equal, step(given), expected)
    assert np.abs(step("muon")["wide"] - expected["wide"]).max() > 1e-4

    def distance(updates):
        """Of the singular values from one."""
        x = updates["wide"] / (1e-2 * 0.2 * 3)
        return np.abs(np.linalg.svd(x, compute_uv=False) - 1).max()

    assert distance(step(None)) < 0.01 * distance(step("muon"))
    with pytest.raises(ValueError, match=r"ns_coeffs has no entry .* \(4, 9\)"):
        step({(5, 5): triple})


def test_half_precision_products_move_the_update_little():
    params = {"w": jnp.asarray(gaussian(12, 30))}

    def step(dtype):
        tx = optlab.root(1e-2, ns_dtype=dtype)
        return tx.update(params, tx.init(params), params)[0]["w"]

    half, full = step(jnp.bfloat16), step(None)
    assert half.dtype == full.dtype
    assert 0 < np.linalg.norm(half - full) < 0.02 * np.linalg.norm(full)


@pytest.mark.parametrize("quantile", [0.0, 1.5, "much"])
def test_a_bad_quantile_is_named(quantile):
    with pytest.raises(ValueError, match="quantile must be"):
        optlab.root(1e-2, quantile=quantile)
    with pytest.raises(ValueError, match="quantile must be"):
        optlab.clip_outliers(quantile)


def test_the_threshold_goes_before_cosmos():
    params = {"w": jnp.asarray(gaussian(6, 9)), "bias": jnp.asarray(gaussian(9))}
    tx = optax.chain(optlab.clip_outliers(0.9), optlab.cosmos(1e-2, rank=2))
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    rms = jnp.sqrt(jnp.mean(updates["w"] ** 2))
    np.testing.assert_allclose(rms, 1e-2, rtol=1e-5)


def test_many_matrices_share_the_kernel_that_cuts_them_from_their_stack():
    """Where XLA knows each one's place, it compiles a kernel for each."""
    rng = np.random.default_rng(0)
    grads = {
        f"layer{i}": jnp.asarray(rng.standard_normal((8, 16)), jnp.float32)
        for i in range(9)
    }
    tx = optlab.scale_by_root()
    state = tx.init(grads)
    update = jax.jit(tx.update).lower(grads, state).compile()
    assert not re.search(r"f32\[(1,)*8,16\]\S* slice\(", update.as_text())
    updates, _ = update(grads, state)
    for name in ("layer0", "layer5", "layer8"):
        alone = {name: grads[name]}
        expected, _ = tx.update(alone, tx.init(alone))
        np.testing.assert_allclose(updates[name], expected[name], atol=1e-5)
