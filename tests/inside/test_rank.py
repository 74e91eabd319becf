"""The effective rank against its definition in NumPy."""

import jax.numpy as jnp
import numpy as np

from optlab.inside.rank import effective_rank


def test_it_is_the_exponential_of_the_entropy(x64):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((2, 5, 3)) * np.asarray([1.0, 0.1, 0.01])
    for found, one in zip(effective_rank(jnp.asarray(matrix)), matrix, strict=True):
        p = np.linalg.svd(one, compute_uv=False)
        p = p / p.sum()
        np.testing.assert_allclose(found, np.exp(-np.sum(p * np.log(p))), rtol=1e-9)
    for matrix, rank in ((np.eye(4), 4), (np.ones((4, 3)), 1), (np.zeros((4, 3)), 0)):
        found = effective_rank(jnp.asarray(matrix, jnp.float32))
        np.testing.assert_allclose(found, rank, atol=1e-3)
