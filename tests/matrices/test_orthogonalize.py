"""Newton-Schulz against the SVD, both forms against each other and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import _muon

import optlab
from experiments.flops import count_flops
from optlab.matrices.coefficients.presets import (
    MUON,
    fit_coefficients,
    mixture_error,
    resolve_coefficients,
)

SCHEDULE = ((4.0, -8.0, 4.5), (3.9, -6.5, 3.0), (3.0, -4.0, 2.0), (2.0, -1.6, 0.6))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def with_singular_values(m, n, values, seed=0):
    u = np.linalg.qr(gaussian(m, len(values), seed=seed))[0]
    v = np.linalg.qr(gaussian(n, len(values), seed=seed + 1))[0]
    return (u * np.asarray(values)) @ v.T


def polynomial_of_the_svd(x, table, order=2):
    """`U p_K(S) V^T`, what the iteration is in exact arithmetic."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    s = s / (np.linalg.norm(s) + 1e-7)
    if order == 4:
        s = s / max(np.linalg.norm(s, 4), len(s) ** -0.25)
    for a, b, c in table:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("method", ["plain", "gram"])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9), (1, 7), (7, 1)])
@pytest.mark.parametrize("coeffs", [MUON, SCHEDULE])
def test_both_forms_are_the_polynomial_of_the_singular_values(
    method, shape, coeffs, x64
):
    x = gaussian(*shape)
    steps = 5 if coeffs is MUON else 4
    result = optlab.orthogonalize(
        jnp.asarray(x), steps=steps, coeffs=coeffs, method=method
    )
    table = [MUON] * 5 if coeffs is MUON else coeffs
    expected = polynomial_of_the_svd(x, table)
    np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize("method", ["plain", "gram"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 0.0])
def test_schattens_norm_of_order_four(method, steps, scale, x64):
    x, table = scale * gaussian(2, 6, 20), SCHEDULE[:steps]
    result = optlab.orthogonalize(
        jnp.asarray(x),
        steps=steps,
        coeffs=table,
        normalize="schatten4",
        method=method,
    )
    for slice_, ours in zip(x, result, strict=True):
        expected = polynomial_of_the_svd(slice_, table, 4)
        np.testing.assert_allclose(ours, expected, atol=1e-11)


ILL_CONDITIONED = {
    "gaussian": gaussian(24, 64),
    "power law": with_singular_values(24, 64, np.arange(1, 25) ** -0.75),
    "condition 1e6": with_singular_values(24, 64, np.logspace(0, -6, 24)),
    "rank 3": with_singular_values(24, 64, [3.0, 2.0, 1.0]),
    "rank 1": with_singular_values(24, 64, [5.0]),
}


@pytest.mark.parametrize("case", ILL_CONDITIONED)
@pytest.mark.parametrize("tall", [False, True])
def test_float32_keeps_to_the_polynomial_on_hard_matrices(case, tall):
    """Also where the Gram form squares singular values below its rounding."""
    x = ILL_CONDITIONED[case]
    x = x.T if tall else x
    expected = polynomial_of_the_svd(x, [MUON] * 5)
    # Rounding where the singular value is zero grows by 3.4445^5 = 485.
    rounding = 485 * np.finfo(np.float32).eps
    for method, bound in (("plain", rounding), ("gram", 2e-3)):
        y = optlab.orthogonalize(jnp.asarray(x, jnp.float32), method=method)
        assert np.linalg.norm(y - expected, 2) < bound, method


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("normalize", ["frobenius", "schatten4"])
@pytest.mark.parametrize("coeffs", ["muon", "fitted", "polar_express"])
def test_half_precision_keeps_to_the_polynomial(dtype, normalize, coeffs):
    """Rounding is not let grow through all steps, in the Gram form least of all."""
    x = np.stack(list(ILL_CONDITIONED.values())).astype(np.float32)
    if coeffs == "fitted":
        coeffs = fit_coefficients(x.shape[1:], 5, per_step=True, normalize=normalize)
    table = np.asarray(resolve_coefficients(coeffs, 5))
    order = {"frobenius": 2, "schatten4": 4}[normalize]
    exact = np.stack([polynomial_of_the_svd(y, table, order) for y in x])

    def error(method):
        y = optlab.orthogonalize(
            jnp.asarray(x),
            coeffs=coeffs,
            normalize=normalize,
            method=method,
            dtype=dtype,
        )
        return np.linalg.norm(y - exact, 2, axis=(1, 2))

    # Half an epsilon would grow by the product of the leading coefficients.
    epsilon = float(jnp.finfo(dtype).eps)
    growth = float(np.prod(table[:, 0]))
    for method in ("plain", "gram"):
        assert (error(method) < epsilon * growth**0.5).all(), (method, error(method))


def llama_130m_block(method):
    """FLOPs of `method` on the seven matrices of a block."""
    shapes = [(768, 768)] * 4 + [(768, 2048)] * 2 + [(2048, 768)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(lambda *xs: [method(x) for x in xs], *arrays).total


def optax_muon(x):
    ns_coeffs = jnp.asarray(MUON)
    return _muon.orthogonalize_via_newton_schulz(x, ns_coeffs, ns_steps=5)


def fitted_four(x, dtype=None):
    coeffs = fit_coefficients(x.shape, 4, per_step=True, normalize="schatten4")
    return optlab.orthogonalize(
        x, steps=4, coeffs=coeffs, normalize="schatten4", dtype=dtype
    )


def test_flops_of_a_llama_block_beside_optax():
    theirs = llama_130m_block(optax_muon)
    assert llama_130m_block(optlab.orthogonalize) < 0.84 * theirs
    assert llama_130m_block(fitted_four) < 0.70 * theirs


def test_the_result_is_optaxs():
    x = jnp.asarray(gaussian(24, 64), jnp.float32)
    for y in (x, x.T, x[:, :24]):
        np.testing.assert_allclose(
            optlab.orthogonalize(y), optax_muon(y), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "share"), [((96, 96), 0.5), ((96, 192), 0.05), ((192, 96), 0.05)]
)
def test_four_fitted_steps_beat_muons_five_on_matrices(shape, share, dtype):
    """On the fit's own mixture of spectra, both with products in that dtype."""
    x = gaussian(*shape)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    power = (u * np.arange(1, u.shape[1] + 1) ** -0.75) @ vt

    def error(f):
        squares = [np.sum((f(jnp.asarray(y)) - u @ vt) ** 2) for y in (x, power)]
        return (0.75 * squares[0] + 0.25 * squares[1]) / u.shape[1]

    x, power = x.astype(np.float32), power.astype(np.float32)
    four = error(lambda y: fitted_four(y, dtype))
    assert four < share * error(lambda y: optax_muon(y.astype(dtype)).astype(x.dtype))
    fitted = fit_coefficients(shape, 4, per_step=True, normalize="schatten4")
    expected = mixture_error(fitted, shape, 4, "schatten4")
    # Rounding adds about epsilon squared: 6e-5 in bfloat16.
    rounding = 2 * float(jnp.finfo(dtype).eps) ** 2
    assert four == pytest.approx(expected, rel=0.1, abs=rounding)


def test_stacks_are_matrices_one_by_one():
    x = jnp.asarray(gaussian(2, 3, 5, 8), jnp.float32)
    stacked = optlab.orthogonalize(x)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(
                stacked[i, j], optlab.orthogonalize(x[i, j]), atol=1e-6
            )


@pytest.mark.parametrize("normalize", ["frobenius", "schatten4"])
@pytest.mark.parametrize("method", ["plain", "gram"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_zero_and_extreme_scales_stay_finite(normalize, method, dtype, scale):
    scale = np.clip(scale, -float(jnp.finfo(dtype).max) / 8, None)
    scale = min(scale, float(jnp.finfo(dtype).max) / 8)
    x = jnp.asarray(gaussian(6, 9) * scale, dtype)
    y = optlab.orthogonalize(x, normalize=normalize, method=method)
    assert y.dtype == dtype
    assert np.isfinite(np.asarray(y, np.float32)).all()
    half = optlab.orthogonalize(x, normalize=normalize, method=method, dtype=dtype)
    assert np.isfinite(np.asarray(half, np.float32)).all()
    if scale < 1:
        plain = optlab.orthogonalize(x, normalize=normalize, method="plain")
        np.testing.assert_allclose(y, plain, rtol=1e-2)
        assert scale or not np.asarray(y).any()
    if scale >= 1:
        singular = np.linalg.svd(np.asarray(y, np.float32))[1]
        assert singular.max() < 1.3 and singular.min() > 0.1


def test_auto_takes_the_form_with_fewer_flops():
    def products(shape):
        jaxpr = jax.make_jaxpr(optlab.orthogonalize)(jnp.zeros(shape))
        return str(jaxpr).count("dot_general")

    square, wide = products((8, 8)), products((8, 64))
    assert square != wide
    assert square == str(
        jax.make_jaxpr(lambda x: optlab.orthogonalize(x, method="plain"))(
            jnp.zeros((8, 8))
        )
    ).count("dot_general")


def test_one_loop_whatever_the_steps():
    def size(steps):
        jaxpr = jax.make_jaxpr(lambda x: optlab.orthogonalize(x, steps=steps))
        return len(str(jaxpr(jnp.zeros((8, 8)))))

    assert abs(size(5) - size(50)) < 5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"coeffs": (1.0, 2.0)}, "coeffs"),
        ({"coeffs": SCHEDULE, "steps": 5}, "coeffs"),
        ({"coeffs": "moun"}, "coeffs"),
        ({"method": "fast"}, "method must be"),
        ({"normalize": "spectral"}, "normalize must be"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optlab.orthogonalize(jnp.ones((3, 4)), **kwargs)
    with pytest.raises(ValueError, match="shape"):
        optlab.orthogonalize(jnp.ones(3))
