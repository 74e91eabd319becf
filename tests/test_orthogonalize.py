"""Newton-Schulz against the SVD, both forms against each other and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.coefficients import MUON

SCHEDULE = ((4.0, -8.0, 4.5), (3.9, -6.5, 3.0), (3.0, -4.0, 2.0), (2.0, -1.6, 0.6))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def with_singular_values(m, n, values, seed=0):
    u = np.linalg.qr(gaussian(m, len(values), seed=seed))[0]
    v = np.linalg.qr(gaussian(n, len(values), seed=seed + 1))[0]
    return (u * np.asarray(values)) @ v.T


def polynomial_of_the_svd(x, table):
    """`U p_K(S) V^T`, what the iteration is in exact arithmetic."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    s = s / (np.linalg.norm(s) + 1e-7)
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


def test_stacks_are_matrices_one_by_one():
    x = jnp.asarray(gaussian(2, 3, 5, 8), jnp.float32)
    stacked = optlab.orthogonalize(x)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(
                stacked[i, j], optlab.orthogonalize(x[i, j]), atol=1e-6
            )


@pytest.mark.parametrize("method", ["plain", "gram"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_zero_and_extreme_scales_stay_finite(method, dtype, scale):
    scale = np.clip(scale, -float(jnp.finfo(dtype).max) / 8, None)
    scale = min(scale, float(jnp.finfo(dtype).max) / 8)
    x = jnp.asarray(gaussian(6, 9) * scale, dtype)
    y = optlab.orthogonalize(x, method=method)
    assert y.dtype == dtype
    assert np.isfinite(np.asarray(y, np.float32)).all()
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
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optlab.orthogonalize(jnp.ones((3, 4)), **kwargs)
    with pytest.raises(ValueError, match="shape"):
        optlab.orthogonalize(jnp.ones(3))
