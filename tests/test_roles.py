"""Roles by path and declared stacks, views and their inverses, buckets."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.matrices.buckets import map_matrices
from optlab.roles import (
    EMBEDDING,
    VECTOR,
    Matrix,
    View,
    as_rule,
    tree_roles,
    tree_views,
)


def role_of(path, shape, **kwargs):
    rule = optlab.default_roles(**kwargs)
    keys = tuple(jax.tree_util.DictKey(k) for k in path.split("/"))
    return rule(keys, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    ("path", "shape", "role"),
    [
        ("temperature", (), VECTOR),
        ("mlp/bias", (8,), VECTOR),
        ("attention/query/bias", (4, 2), VECTOR),
        ("mlp/kernel", (4, 8), Matrix((0,), (1,))),
        ("mlp/kernel", (1, 8), Matrix((0,), (1,))),
        ("embed/embedding", (100, 8), EMBEDDING),
        ("pos_embed", (1, 16, 8), EMBEDDING),
        ("transformer/wte", (100, 8), EMBEDDING),
        ("lm_head/kernel", (8, 100), EMBEDDING),
        ("lm_head/bias", (100,), VECTOR),
        ("multi_head_attention/kernel", (8, 8), Matrix((0,), (1,))),
        ("conv1/kernel", (3, 3, 4, 8), Matrix((0, 1, 2), (3,))),
        ("attention/query/kernel", (8, 2, 4), Matrix((0,), (1, 2))),
        ("attention/out/kernel", (2, 4, 8), Matrix((0, 1), (2,))),
        ("layers/q_proj/kernel", (12, 8, 8), Matrix((1,), (2,))),
        ("layers/norm/scale", (12, 8), VECTOR),
        ("layers/experts/up/kernel", (12, 4, 8, 16), Matrix((2,), (3,))),
        ("layers/attention/query/kernel", (12, 8, 2, 4), Matrix((1,), (2, 3))),
    ],
)
def test_default_roles(path, shape, role):
    assert role_of(path, shape, stacked=("^layers/", "experts/")) == role


def test_own_names_for_embeddings():
    assert role_of("token_table", (10, 4), embeddings=("table",)) == EMBEDDING
    assert role_of("embed", (10, 4), embeddings=("table",)) == Matrix((0,), (1,))


def test_a_stack_that_is_not_declared_is_told(caplog):
    with caplog.at_level(logging.WARNING, "optlab"):
        role_of("blocks/kernel", (12, 8, 8))
        role_of("conv/kernel", (3, 8, 8))
    assert [r.args[0] for r in caplog.records] == ["blocks/kernel"]


def test_bad_patterns_and_missing_axes_are_named():
    with pytest.raises(ValueError, match=r"stacked: '\('"):
        optlab.default_roles(stacked=("(",))
    with pytest.raises(ValueError, match=r"stacked takes 1 axes off 'layers/x'"):
        role_of("layers/x", (), stacked=("layers",))


def test_dimension_numbers_of_optax_are_roles_too():
    dims = optax.contrib.MuonDimensionNumbers
    rule = as_rule({"a": dims(-2, -1), "b": None, "c": dims((0, 1), 2)})
    params = {
        "a": {"kernel": jnp.zeros((5, 3, 4))},
        "b": jnp.zeros((3, 4)),
        "c": jnp.zeros((2, 3, 4)),
    }
    assert tree_roles(params, rule) == {
        "a": {"kernel": Matrix((1,), (2,))},
        "b": VECTOR,
        "c": Matrix((0, 1), (2,)),
    }
    with pytest.raises(ValueError, match="roles says nothing about 'd'"):
        tree_roles({"d": jnp.zeros(3)}, rule)


@pytest.mark.parametrize(
    ("role", "shape", "stacked"),
    [
        (Matrix((0,), (1,)), (4, 8), (1, 4, 8)),
        (Matrix((1,), (2,)), (3, 4, 8), (3, 4, 8)),
        (Matrix((0, 1), (3,)), (4, 2, 5, 8), (5, 8, 8)),
        (Matrix((2,), (0,)), (6, 3, 4), (3, 4, 6)),
    ],
)
def test_views_have_inverses(role, shape, stacked):
    leaf = jnp.arange(np.prod(shape)).reshape(shape)
    view = View.of(role, shape)
    matrices = view.matrices(leaf)
    assert matrices.shape == stacked
    np.testing.assert_array_equal(view.leaf(matrices), leaf)


def test_map_matrices_makes_few_buckets_and_gives_each_leaf_its_own():
    rule = optlab.default_roles(stacked=("^layers",))
    shapes = {"a": (4, 6), "b": (6, 4), "c": (4, 6), "layers": (3, 4, 6), "d": (5, 5)}
    rng = np.random.default_rng(0)
    tree = {k: jnp.asarray(rng.standard_normal(s)) for k, s in shapes.items()}
    views = tree_views(tree, rule, "test")
    calls = []

    def gram_times(x, scale=2.0):
        calls.append(x.shape)
        return scale * (x @ x.mT @ x), x[:, 0, 0]

    def with_factor(x, scale):
        return gram_times(x, scale[:, None, None])[0], scale + 1

    scales = {k: jnp.full(s[:-2], i + 1.0) for i, (k, s) in enumerate(shapes.items())}
    out, new = map_matrices(with_factor, views, (tree,), (scales,))
    assert calls == [(2, 4, 6), (1, 6, 4), (1, 5, 5), (3, 4, 6)]
    for key, x in tree.items():
        expected = scales[key][..., None, None] * (x @ x.mT @ x)
        np.testing.assert_allclose(out[key], expected, rtol=1e-5)
        np.testing.assert_array_equal(new[key], scales[key] + 1)
    calls.clear()
    out, corner = map_matrices(gram_times, views, (tree,), wide=True)
    assert calls == [(6, 4, 6), (1, 5, 5)]
    for key, x in tree.items():
        np.testing.assert_allclose(out[key], 2 * (x @ x.mT @ x), rtol=1e-5)
        np.testing.assert_array_equal(corner[key], x[..., 0, 0])


def test_describe_lists_roles_transforms_decay_and_bytes():
    params = {
        "embed": jnp.zeros((10, 4)),
        "layers": {"kernel": jnp.zeros((2, 4, 6)), "bias": jnp.zeros((2, 6))},
    }
    rule = optlab.default_roles(stacked=("^layers/",))

    def mask(tree):
        return jax.tree.map(
            lambda role: role is not VECTOR,
            tree_roles(tree, rule),
            is_leaf=lambda x: isinstance(x, Matrix),
        )

    tx = optlab.cosmos(1e-2, rank=2, roles=rule)
    table = optlab.describe(params, rule, tx, decay_mask=mask)
    rows = {row.path: row for row in table}
    assert rows["layers/kernel"].role == "2 matrices 4x6"
    assert rows["layers/kernel"].optimizer == "cosmos"
    assert rows["layers/kernel"].state_bytes == 4 * 2 * (24 + 8 + 4 + 12)
    assert rows["embed"] == ("embed", (10, 4), "embedding", "adam", True, 320)
    assert rows["layers/bias"].decay is False
    assert "layers/kernel  2x4x6" in str(table)
    assert str(table).endswith(f"{sum(r.state_bytes for r in table):,}")
    assert [r.role for r in optlab.describe(params, rule)] == [
        "embedding",
        "vector",
        "2 matrices 4x6",
    ]
