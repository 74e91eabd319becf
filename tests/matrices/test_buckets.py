"""A function of matrices over trees, chunk by chunk, is the function of each matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.matrices import buckets
from optlab.roles import tree_views

SHAPES = {"up": (6, 4, 10), "down": (6, 10, 4), "square": (5, 4, 4), "single": (10, 4)}
RULE = optlab.default_roles(stacked=("up", "down", "square"))


@pytest.mark.parametrize(
    ("shape", "limit", "size"),
    [
        ((12, 10, 10), 400, 1),
        ((12, 10, 10), 1700, 4),
        ((12, 10, 10), 2100, 4),
        ((7, 10, 10), 2000, 1),
        ((7, 10, 10), 2800, 7),
        ((12, 10, 10), 1, 1),
        ((0, 10, 10), 1, 1),
        ((3, 0, 10), 1, 1),
    ],
)
def test_chunks_divide_their_stack(monkeypatch, shape, limit, size):
    monkeypatch.setattr(buckets, "CHUNK_BYTES", limit)
    assert buckets.chunk_size(shape, jnp.float32) == size


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("matrix", [False, True])
def test_chunks_give_what_the_whole_gives(monkeypatch, wide, matrix):
    rng = np.random.default_rng(0)

    def tree():
        return {k: jnp.asarray(rng.standard_normal(s)) for k, s in SHAPES.items()}

    first, second = tree(), tree()
    views = tree_views(first, RULE, "test")
    scales = {
        k: jnp.arange(1.0, np.prod(view.stack) + 1).reshape(view.stack)
        for k, view in views.items()
    }

    def f(x, *scale):
        shapes.add(x.shape)
        y = x @ x.mT @ x
        out = y * scale[0][:, None, None] if scale else y
        return (out if matrix else None, *(s + 1 for s in scale), jnp.sum(y, (1, 2)))

    def run():
        return buckets.map_matrices(
            *(f, views, (first, second), () if wide else (scales,)),
            made=lambda a, b: (2 * a + b,),
            wide=wide,
        )

    shapes = set()
    expected, whole = run(), shapes
    monkeypatch.setattr(buckets, "CHUNK_BYTES", 1)
    shapes = set()
    found = run()
    assert max(shape[0] for shape in shapes) == 1 < max(shape[0] for shape in whole)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    jax.tree.map(close, found, expected)
