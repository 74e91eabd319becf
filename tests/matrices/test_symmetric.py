"""Symmetric products by blocks: the numbers of whole ones, for fewer FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.flops import count_flops
from optlab.matrices import precision, symmetric
from optlab.matrices.orthogonalize import orthogonalize


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 and more."""
    monkeypatch.setattr(symmetric, "_LEAST", 16)


def whole(monkeypatch, f, *args):
    """The same function without blocks."""
    with monkeypatch.context() as patch:
        patch.setattr(symmetric, "_MOST", 1)
        return f(*args)


def test_large_sides_are_cut_and_small_ones_are_not():
    assert [symmetric.parts(m) for m in (1, 640, 768, 1024, 2048, 11008)] == [
        *(1, 1, 2, 2, 4, 4)
    ]
    assert symmetric.share(640) == 1
    assert symmetric.share(768) == 0.75
    assert symmetric.share(2048) == 0.625


@pytest.mark.parametrize("m", [32, 45, 64, 100])
@pytest.mark.parametrize("tall", [False, True])
def test_a_gram_matrix_is_that_of_the_whole_product(m, tall, x64, small_blocks):
    x = jnp.asarray(gaussian(m, 3, m, m // 2 if tall else 2 * m))
    found = precision.gram_matrix(x)
    np.testing.assert_allclose(found, x @ x.mT, rtol=0, atol=1e-12 * m)
    lower = found[..., 16:, :16]
    np.testing.assert_array_equal(lower, found[..., :16, 16:].mT)
    flops = count_flops(precision.gram_matrix, x).matmul
    assert flops == pytest.approx(symmetric.share(m) * 2 * 3 * m * m * x.shape[-1])
    assert flops < 0.8 * 2 * 3 * m * m * x.shape[-1]


@pytest.mark.parametrize("normalize", ["frobenius", "schatten4"])
@pytest.mark.parametrize("shape", [(40, 45), (40, 100), (2, 70, 40)])
def test_orthogonalize_gives_what_it_gives_without_blocks(
    shape, normalize, x64, small_blocks, monkeypatch
):
    x = jnp.asarray(gaussian(1, *shape))

    def polar(x):
        return orthogonalize(x, normalize=normalize)

    expected = whole(monkeypatch, polar, x)
    np.testing.assert_allclose(polar(x), expected, rtol=0, atol=1e-11)
    slope = jax.grad(lambda x: jnp.sum(polar(x) ** 2))(x)
    expected = whole(monkeypatch, jax.grad(lambda x: jnp.sum(polar(x) ** 2)), x)
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["plain", "gram"])
def test_float32_is_as_near_to_the_exact_as_without_blocks(
    method, small_blocks, monkeypatch
):
    x = gaussian(2, 8, 96, 200) * np.logspace(0, -4, 96)[:, None]
    with jax.enable_x64(True):
        exact = np.asarray(orthogonalize(jnp.asarray(x, jnp.float64), method="plain"))

    def error(x):
        found = orthogonalize(x, method=method)
        off = np.asarray(found, np.float64) - exact
        return np.linalg.norm(off, 2, axis=(-2, -1)).mean()

    x = jnp.asarray(x, jnp.float32)
    assert error(x) <= 1.5 * whole(monkeypatch, error, x) + 1e-6


@pytest.mark.parametrize(
    ("dtype", "platform", "share"),
    [
        ("float32", "cpu", (1 + 0.625 + 0.625) / 3),
        ("bfloat16", "cpu", 1),
        ("float32", "cuda", 1),
        ("float32", "tpu", 1),
    ],
)
def test_only_wide_numbers_on_cpus_are_cut(
    dtype, platform, share, small_blocks, monkeypatch
):
    x = jax.ShapeDtypeStruct((64, 64), dtype)

    def flops():
        # A function that was traced would not be traced again.
        def polar(x):
            return orthogonalize(x, dtype=dtype)

        return count_flops(polar, x, platform=platform).matmul

    assert flops() == pytest.approx(share * whole(monkeypatch, flops))
