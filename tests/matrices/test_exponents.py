"""Exponents and powers of two by bits, against NumPy's for every exponent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab.matrices.exponents import exponent_of, power_of_two

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_exponent_and_both_ends_of_it(dtype, x64):
    info = jnp.finfo(dtype)
    exponents = np.arange(int(info.minexp), int(info.maxexp))
    powers = np.ldexp(1.0, exponents).astype(dtype)
    np.testing.assert_array_equal(power_of_two(jnp.asarray(exponents), dtype), powers)
    almost_next = powers * np.asarray(2 - 2 * info.epsneg, dtype)
    for x in (powers, -powers, almost_next):
        np.testing.assert_array_equal(exponent_of(jnp.asarray(x)), exponents)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_normal_number(dtype, x64):
    info = jnp.finfo(dtype)
    x = jnp.asarray([0.0, -0.0, float(info.tiny) / 4, np.inf, -np.inf, np.nan], dtype)
    below, above = int(info.minexp) - 1, int(info.maxexp)
    np.testing.assert_array_equal(exponent_of(x), 3 * [below] + 3 * [above])


def test_no_derivative():
    def f(x):
        return x * power_of_two(exponent_of(x), x.dtype)

    assert jax.grad(f)(3.0) == jax.jvp(f, (3.0,), (1.0,))[1] == 2.0
