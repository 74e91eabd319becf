"""Linear algebra against NumPy's factorisations, rank-deficient and zero included."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.matrices import linalg, precision
from optlab.matrices.orthogonalize import orthogonalize


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_frobenius_norm_neither_overflows_nor_underflows(scale):
    x = gaussian(2, 5, 7) * np.float32(scale)
    expected = np.linalg.norm(x.astype(np.float64), axis=(1, 2))
    result = linalg.frobenius_norm(jnp.asarray(x), axis=(-2, -1))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_frobenius_norm_of_nothing_and_of_zero_is_zero():
    assert linalg.frobenius_norm(jnp.zeros((3, 4))) == 0
    assert linalg.frobenius_norm(jnp.zeros((0, 4))) == 0


def test_frobenius_norm_lets_what_is_not_finite_be_seen():
    assert np.isnan(linalg.frobenius_norm(jnp.array([[1.0, np.nan]])))
    assert not np.isfinite(linalg.frobenius_norm(jnp.array([[1.0, np.inf]])))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_norms_hold_up_to_the_largest_and_down_to_the_smallest_number(dtype):
    info = jnp.finfo(dtype)
    largest, smallest = float(info.max), float(info.smallest_normal)
    for value in (largest, 0.6 * largest, 0.3 * largest, smallest, 3 * smallest, 1.0):
        one = jnp.asarray([[value]], dtype)
        for f in (linalg.frobenius_norm, jax.jit(linalg.frobenius_norm)):
            assert f(one) == one[0, 0]
        np.testing.assert_array_equal(linalg.unit(one, (-2, -1)), 1)
        two = jnp.asarray([[value, -value]], dtype)
        unit = linalg.unit(two, (-2, -1)).astype(jnp.float32)
        np.testing.assert_allclose(unit, [[0.5**0.5, -(0.5**0.5)]], rtol=1e-2)
        cap = largest**0.4
        norm = linalg.frobenius_norm(linalg.cap_norm(two)).astype(jnp.float32)
        expected = min(cap, 2**0.5 * value)
        np.testing.assert_allclose(norm, expected, rtol=2e-2)


def test_what_divides_by_a_norm_works_where_it_overflows():
    x = np.random.default_rng(0).uniform(-1, 1, (4, 6)).astype(np.float32)
    big, small = (orthogonalize(jnp.asarray(scale * x)) for scale in (3e38, 1.0))
    np.testing.assert_allclose(big, small, atol=1e-5)


def test_cap_norm_is_the_identity_up_to_the_cap():
    x = jnp.asarray(gaussian(2, 5, 7))
    np.testing.assert_array_equal(linalg.cap_norm(x), x)
    capped = linalg.cap_norm(x * 1e25)
    norms = np.linalg.norm(np.asarray(capped, np.float64), axis=(1, 2))
    np.testing.assert_allclose(norms, float(jnp.finfo(x.dtype).max) ** 0.4, rtol=1e-5)
    assert np.isfinite(precision.product(capped, capped.mT)).all()


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_leading_left_singular_vectors_are_the_svds(shape):
    x = gaussian(3, *shape)
    u = linalg.leading_left_singular_vectors(jnp.asarray(x), 4)
    expected = np.linalg.svd(x, full_matrices=False)[0][..., :4]
    overlap = np.abs(np.einsum("smr,smr->sr", u, expected))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
@pytest.mark.parametrize("rank", [0, 2])
def test_leading_left_singular_vectors_of_low_rank_stay_orthonormal(shape, rank):
    m, n = shape
    x = gaussian(m, rank) @ gaussian(rank, n, seed=1) if rank else np.zeros(shape)
    u = linalg.leading_left_singular_vectors(jnp.asarray(x, jnp.float32), 4)
    np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(u @ (u.T @ x), x, atol=1e-4)


def test_orthonormal_basis_keeps_nested_spans():
    x = gaussian(2, 9, 4)
    q = np.asarray(linalg.orthonormal_basis(jnp.asarray(x)))
    np.testing.assert_allclose(np.swapaxes(q, 1, 2) @ q, [np.eye(4)] * 2, atol=1e-5)
    for k in range(1, 5):
        part = q[..., :k]
        seen = part @ (np.swapaxes(part, 1, 2) @ x[..., :k])
        np.testing.assert_allclose(seen, x[..., :k], atol=1e-4)


@pytest.mark.parametrize("case", ["scaled", "dependent", "near", "zero", "one zero"])
def test_orthonormal_basis_of_hard_columns(case):
    x = gaussian(3, 12, 4)
    if case == "scaled":
        x = x * np.logspace(0, -18, 4, dtype=np.float32)
    elif case == "dependent":
        x[..., 2] = x[..., 0] + x[..., 1]
    elif case == "near":
        x[..., 1] = x[..., 0] * (1 + 1e-5 * x[..., 1])
    elif case == "zero":
        x = 0 * x
    else:
        x[1] = 0
    q = np.asarray(linalg.orthonormal_basis(jnp.asarray(x)))
    np.testing.assert_allclose(np.swapaxes(q, 1, 2) @ q, [np.eye(4)] * 3, atol=1e-5)
    if case == "scaled":
        # Householder's own basis but for the signs.
        expected = np.linalg.qr(x.astype(np.float64))[0]
        np.testing.assert_allclose(np.abs(q), np.abs(expected), atol=1e-5)


def test_orthonormal_basis_needs_no_reflections_where_cholesky_does(monkeypatch):
    """The cheap way is taken to a condition of 1e3 in float32."""
    u, _, vt = np.linalg.svd(gaussian(20, 4), full_matrices=False)
    x = jnp.asarray((u * np.logspace(0, -3, 4)) @ vt)

    def failing(x):
        return jnp.full_like(x, jnp.nan), None

    monkeypatch.setattr(jnp.linalg, "qr", failing)
    q = linalg.orthonormal_basis(x)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-5)
    assert np.isnan(linalg.orthonormal_basis(x.at[:, 1].set(x[:, 0]))).all()


def test_subspace_iteration_finds_the_leading_eigenspace():
    values = np.array([9.0, 7.0, 5.0, 0.5, 0.3, 0.1])
    q = np.linalg.qr(gaussian(6, 6))[0]
    x = jnp.asarray(q * np.sqrt(values) @ np.linalg.qr(gaussian(6, 6, seed=1))[0].T)
    basis = jnp.linalg.qr(jnp.asarray(gaussian(6, 3, seed=2)))[0]
    for _ in range(30):
        projected = basis.T @ x
        basis = linalg.subspace_step(basis, projected @ projected.T, x, 0.5)
    np.testing.assert_allclose(np.linalg.norm(q[:, :3].T @ basis, axis=0), 1, atol=1e-4)


def spectrum(name, m):
    i = np.arange(1, m + 1, dtype=float)
    return {
        "half": i**-0.5,
        "one": i**-1.0,
        "two": i**-2.0,
        "exponential": np.exp(-i / 8),
        "rank one": 1.0 * (i == 1),
        "rank five": 1.0 * (i <= 5),
    }[name]


def with_spectrum(name, m, n, seed):
    if name == "gaussian":
        return gaussian(m, n, seed=seed)
    u = np.linalg.qr(gaussian(m, m, seed=seed))[0]
    v = np.linalg.qr(gaussian(n, m, seed=seed + 1))[0]
    return (u * spectrum(name, m) @ v.T).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("gaussian", 0.97, 1.03),
        ("rank one", 0.97, 1.03),
        ("rank five", 0.97, 1.03),
        ("half", 0.97, 1.03),
        ("one", 0.9, 1.03),
        ("two", 0.9, 1.1),
        ("exponential", 0.97, 1.1),
    ],
)
def test_the_estimated_nuclear_norm_keeps_the_ratios_of_layers(name, low, high):
    """And does so better than Newton-Schulz: 0.70 of rank one, 0.9 of full rank."""
    shapes = [(96, 96), (96, 256)]
    for m, n in shapes:
        x = np.stack([with_spectrum(name, m, n, seed) for seed in range(4)])
        x = x * np.array([1e-15, 1.0, 7.0, 1e15], np.float32)[:, None, None]
        exact = np.linalg.svd(x.astype(np.float64), compute_uv=False).sum(-1)
        ratio = linalg.nuclear_norm_estimate(jnp.asarray(x)) / exact
        assert low < ratio.min() and ratio.max() < high, ratio


def test_the_estimated_nuclear_norm_of_small_and_of_empty_matrices():
    for m in (1, 2, 5):
        x = gaussian(m, 7)
        exact = np.linalg.svd(x, compute_uv=False).sum()
        assert float(linalg.nuclear_norm_estimate(x)) == pytest.approx(exact, rel=1e-4)
    assert float(linalg.nuclear_norm_estimate(jnp.zeros((12, 20)))) == 0


MANY_STACKS = """
import jax
from optlab.matrices import linalg
from optlab.matrices.orthogonalize import orthogonalize

x = jax.random.normal(jax.random.key(0), (24, 8, 64, 64))

@jax.jit
def factors(x):
    return [MAKE for y in x]

for _ in range(30):
    jax.block_until_ready(factors(x))
"""


@pytest.mark.parametrize(
    "make",
    [
        "linalg.orthonormal_basis(y), linalg.refresh_eigenbasis(y @ y.mT, y)",
        "linalg.eigenbasis(y @ y.mT)",
        "jax.jvp(linalg.orthonormal_basis, (y,), (y,))",
    ],
)
def test_factorisations_of_many_stacks_end_on_two_threads(make):
    variables = os.environ | {"NPROC": "2", "PJRT_NPROC": "2", "XLA_FLAGS": ""}
    words = [sys.executable, "-c", MANY_STACKS.replace("MAKE", f"({make})")]
    subprocess.run(words, env=variables, check=True, timeout=300)
