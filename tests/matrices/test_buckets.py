"""A function of matrices over trees, chunk by chunk, is the function of each matrix."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import sharding
from optlab.matrices import buckets, chunks
from optlab.roles import tree_views

SHAPES = {"up": (6, 4, 10), "down": (6, 10, 4), "square": (5, 4, 4)}
SHAPES |= {"single": (10, 4), "other": (10, 4), "wide": (4, 10), "conv": (2, 5, 2, 2)}
SHAPES |= {"out/kernel": (5, 2, 4)}
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
def test_chunks_divide_their_stack(shape, limit, size):
    assert chunks.chunk_size(shape, jnp.float32, limit) == size


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("devices", [None, 2], ids=["alone", "mesh"])
def test_chunks_give_what_the_whole_gives(wide, matrix, devices):
    distribute = None
    if devices:
        mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
        distribute = sharding.over_mesh(mesh, "data")
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

    def run(chunk_bytes=None):
        shapes.clear()
        found = buckets.map_matrices(
            *(f, views, (first, second), () if wide else (scales,)),
            made=lambda a, b: (2 * a + b,),
            distribute=distribute,
            chunk_bytes=chunk_bytes,
            wide=wide,
        )
        return found, max(shape[0] for shape in shapes)

    shapes = set()
    expected, whole = run()
    found, most = run(chunk_bytes=1)
    assert most == 1 < whole

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    jax.tree.map(close, found, expected)


TAKING = [
    name
    for name in optlab.registry.names()
    if optlab.registry.get(name).takes("chunk_bytes")
]
TRANSFORMS = {
    name: partial(optlab.registry.get(name).factory, 1e-2) for name in TAKING
} | {
    "clip_outliers": optlab.clip_outliers,
    "noise_adaptive": partial(optlab.noise_adaptive, optax.trace(0.9)),
    "scale_by_lmo": optlab.scale_by_lmo,
}


def test_every_matrix_method_takes_the_size_of_its_chunks():
    spheres = {"cosmos_h", "muon_h", "soap_h"}
    methods = {"cosmos", "lanton", "muon", "normuon", "root", "scion", "soap"}
    assert set(TAKING) == methods | spheres


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_given_size_of_chunks_is_every_buckets(monkeypatch, name):
    sizes, given = [], chunks.chunk_size

    def noted(shape, dtype, chunk_bytes):
        sizes.append(chunk_bytes)
        return given(shape, dtype, chunk_bytes)

    monkeypatch.setattr(chunks, "chunk_size", noted)
    tx = TRANSFORMS[name](roles=RULE, chunk_bytes=200)
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
    state = jax.eval_shape(tx.init, params)
    jax.eval_shape(tx.update, params, state, params)
    assert set(sizes) == {200}


def test_separate_leaves_in_turn_are_batched_and_derived(x64):
    """As an ensemble and a learning rate that is learnt need it."""
    params = {k: SHAPES[k] for k in ("single", "other", "wide", "conv")}
    views = tree_views(jax.tree.map(jnp.ones, params, is_leaf=_is_shape), RULE, "test")
    rng = np.random.default_rng(0)
    leaves = {k: jnp.asarray(rng.standard_normal((3, *s))) for k, s in params.items()}

    def total(leaves, chunk_bytes):
        (found,) = buckets.map_matrices(
            *(lambda x: (jnp.sin(x) @ x.mT @ x,), views, (leaves,)),
            wide=True,
            chunk_bytes=chunk_bytes,
        )
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(found))

    def derived(chunk_bytes):
        return jax.vmap(jax.grad(partial(total, chunk_bytes=chunk_bytes)))(leaves)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-12)

    jax.tree.map(close, derived(1), derived(None))


def _is_shape(x):
    return isinstance(x, tuple)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("platform", "stack"), [("cpu", ""), ("cuda", "8x")])
def test_the_platform_that_is_lowered_for_decides_where_no_size_is_given(
    platform, stack, separate
):
    tx = optlab.muon(1e-2, roles=optlab.default_roles(stacked="."))
    params = {"w": jax.ShapeDtypeStruct((8, 512, 512), jnp.float32)}
    if separate:
        tx = optlab.muon(1e-2)
        one = jax.ShapeDtypeStruct((512, 512), jnp.float32)
        params = {f"layer{i}/kernel": one for i in range(8)}
    traced = jax.jit(tx.update).trace(params, jax.eval_shape(tx.init, params), params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = re.findall(r"dot_general.*-> tensor<(8x)?512x512xf32>", text)
    assert set(products) == {stack}
