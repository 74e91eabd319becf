"""Roles by path and declared stacks, views and their inverses, buckets."""

import json
import logging
import pathlib

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
    Embedding,
    Matrix,
    View,
    as_rule,
    group,
    leaf_name,
    tree_roles,
    tree_views,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"


CONVOLUTION = Matrix((0, 1, 2), (3,), (0, 1))
IN_OUT = Matrix((0,), (1,))


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
        ("lm_head/kernel", (8, 100), Embedding(1)),
        ("lm_head/bias", (100,), VECTOR),
        ("multi_head_attention/kernel", (8, 8), Matrix((0,), (1,))),
        ("conv1/kernel", (3, 3, 4, 8), Matrix((0, 1, 2), (3,), (0, 1))),
        ("conv_out/kernel", (3, 4, 6), Matrix((0, 1), (2,), (0,))),
        ("head", (8, 100), Embedding(1)),
        ("text_embedder/layers_0/mlp/kernel", (8, 16), Matrix((0,), (1,))),
        ("pre_logits/kernel", (8, 8), Matrix((0,), (1,))),
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


def key_path(keys):
    """A path as the golden file writes it."""
    kinds = {
        "attr": jax.tree_util.GetAttrKey,
        "seq": lambda i: jax.tree_util.SequenceKey(int(i)),
    }
    made = []
    for key in keys:
        kind, _, rest = key.partition(":")
        made.append(kinds[kind](rest) if rest else jax.tree_util.DictKey(key))
    return tuple(made)


@pytest.mark.parametrize(
    "entry",
    json.loads((GOLDEN / "roles.json").read_text()),
    ids=lambda entry: f"{entry['codebase']}: {'/'.join(entry['path'])}",
)
def test_leaves_of_real_code_bases(entry):
    shape = tuple(entry["shape"])
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    rule = optlab.default_roles(layout=entry["preset"], **entry["options"])
    role = rule(key_path(entry["path"]), leaf)
    assert group(role) == entry["role"]
    if isinstance(role, Matrix):
        assert [list(role.rows), list(role.cols)] == [entry["rows"], entry["cols"]]
        stack = View.of(role, shape).order[: len(entry["stack"])]
        assert list(stack) == entry["stack"]
        assert set(role.spatial) < set(role.rows) or not role.spatial
    if isinstance(role, Embedding):
        assert role.vocabulary_axis == entry["vocabulary_axis"]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["mha", "query", "kernel", "attr:value"], "mha/query/kernel"),
        (["mha", "value", "kernel", "attr:raw_value"], "mha/value/kernel"),
        (["attr:attn", "attr:weight", "attr:array"], "attn/weight"),
        (["attr:w", "attr:data_array", "attr:value"], "w"),
        (["attr:norm", "attr:bias", "seq:0"], "norm/bias"),
        (["attr:layers", "seq:0", "attr:weight"], "layers/0/weight"),
        (["layers", "seq:0"], "layers/0"),
        (["transformer.wte.weight"], "transformer/wte/weight"),
        (["layer_stack/linear", "w"], "layer_stack/linear/w"),
        (["value"], "value"),
        (["attr:value"], "value"),
    ],
)
def test_one_name_for_a_leaf(keys, name):
    assert leaf_name(key_path(keys)) == name


@pytest.mark.parametrize(
    ("path", "shape", "layout", "role"),
    [
        ("conv.weight", (6, 4, 3), "torch", Matrix((1, 2), (0,), (2,))),
        ("lm_head.weight", (100, 8), "torch", EMBEDDING),
        ("lm_head/kernel", (8, 100), "torch", Embedding(1)),
        ("fc/kernel", (8, 100), "torch", Matrix((0,), (1,))),
        ("embed/embeddings", (100, 8), "haiku", EMBEDDING),
        ("mlp/linear/b", (3, 8), "haiku", VECTOR),
        ("mlp/linear/b", (3, 8), "flax", Matrix((0,), (1,))),
        ("layers/scalar", (12,), "maxtext", VECTOR),
        ("decoder_norm/scale", (8,), "maxtext", VECTOR),
        ("mlp/qkv_einsum/w", (3, 4, 32, 8), "einsum", Matrix((2,), (1, 3))),
        ("attention/qkv/kernel", (8, 3, 2, 4), "flax", Matrix((0,), (1, 2, 3))),
        ("mlp/gating_einsum", (2, 8, 16), "einsum", Matrix((1,), (2,))),
        ("attn/q_einsum_1/w", (4, 32, 8), "einsum", Matrix((1,), (0, 2))),
        ("attn/q_proj/w", (32, 4, 8), "einsum", Matrix((0,), (1, 2))),
        ("relative_attention_bias.weight", (32, 8), "torch", EMBEDDING),
        ("attn.relative_position_bias_table", (169, 4), "torch", EMBEDDING),
        ("attn.rel_pos_h", (27, 64), "torch", EMBEDDING),
        ("cls.predictions.decoder.weight", (64, 8), "torch", EMBEDDING),
        ("lm_head/decoder/kernel", (8, 64), "flax", Embedding(1)),
        ("decoder/kernel", (8, 64), "flax", IN_OUT),
        ("classifier/out_proj/kernel", (8, 5), "flax", Embedding(1)),
        ("output.weight", (64, 8), "torch", EMBEDDING),
        ("params/output/kernel", (8, 64), "flax", Embedding(1)),
        ("attention/output/kernel", (8, 8), "flax", IN_OUT),
        ("fc.weight", (64, 8), "torch", EMBEDDING),
        ("blocks.0.fc.weight", (64, 8), "torch", Matrix((1,), (0,))),
        ("fc1.weight", (64, 8), "torch", Matrix((1,), (0,))),
        ("embed_out/kernel", (8, 64), "flax", Embedding(1)),
        ("embed_out.weight", (64, 8), "torch", EMBEDDING),
        ("lm_head/embedding", (64, 8), "flax", EMBEDDING),
        ("readout/kernel", (8, 64), "flax", Embedding(1)),
        ("vq/codebook", (64, 8), "flax", EMBEDDING),
        ("embedding_lookup/emb_var", (64, 8), "flax", EMBEDDING),
        ("shared/embedding", (64, 8), "flax", EMBEDDING),
        ("shared/kernel", (8, 16), "flax", IN_OUT),
        ("moe/shared_expert/kernel", (8, 16), "flax", IN_OUT),
        ("embedder/linear", (8, 8), "flax", IN_OUT),
        ("multi_head/kernel", (8, 24), "flax", IN_OUT),
        ("multi_head/qkv", (8, 24), "flax", IN_OUT),
        ("patch_embed/kernel", (48, 8), "flax", IN_OUT),
        ("embeddings/patch_embedding/kernel", (4, 4, 3, 8), "flax", CONVOLUTION),
        ("img/embedding/kernel", (4, 4, 3, 8), "flax", CONVOLUTION),
        ("out/kernel", (3, 3, 8, 4), "flax", CONVOLUTION),
        ("value/kernel", (1, 1, 8, 4), "flax", CONVOLUTION),
        ("mlp/expert/wo/kernel", (4, 16, 8), "flax", Matrix((0, 1), (2,), (0,))),
        ("dist_token", (1, 1, 8), "torch", VECTOR),
        ("reg_token", (1, 4, 8), "torch", VECTOR),
        ("MAPHead_0/probe", (1, 1, 8), "flax", VECTOR),
        ("att.time_mix_k", (1, 1, 8), "torch", VECTOR),
        ("mixer.A_log", (16, 4), "torch", VECTOR),
        ("norm.weight", (3, 4, 5), "torch", VECTOR),
        ("blocks/attn_norm", (3, 8), "flax", VECTOR),
        ("blocks/ln_1/kernel", (3, 8), "flax", VECTOR),
        ("attn/q_bias", (4, 8), "flax", VECTOR),
        ("attention/gating_b", (4, 8), "haiku", VECTOR),
        ("attention/query_w", (32, 4, 8), "haiku", Matrix((0,), (1, 2))),
        ("attention/output_w", (4, 8, 32), "haiku", Matrix((0, 1), (2,))),
        ("dense/lora/b", (4, 8), "haiku", IN_OUT),
        ("q_proj/w_lora_b", (4, 2, 8), "flax", Matrix((0,), (1, 2))),
        ("o_proj/w_lora_a", (2, 8, 4), "flax", Matrix((0, 1), (2,))),
        ("layers/MoeBlock_0/wi_0", (4, 3, 8, 16), "maxtext", Matrix((2,), (3,))),
        ("layers_0/MoeBlock_0/wo", (4, 16, 8), "maxtext", Matrix((1,), (2,))),
        ("moe_layers/attn/wkv_b/kernel", (8, 3, 4, 2), "maxtext", Matrix((0,), (2, 3))),
    ],
)
def test_layouts(path, shape, layout, role):
    assert role_of(path, shape, layout=layout) == role


def test_what_cannot_be_known_is_said_once_and_stands_in_the_table(caplog):
    params = {
        "embed": jnp.zeros((50, 8)),
        "unnamed": jnp.zeros((8, 50)),
        "deep": jnp.zeros((3, 4, 5)),
        "thin": jnp.zeros((1, 6)),
        "layers": {"up": jnp.zeros((2, 8, 6))},
    }
    rule = optlab.default_roles(stacked=("^layers/", "^blocks/"))
    tx = optlab.cosmos(1e-3, rank=2, roles=rule)
    with caplog.at_level(logging.WARNING, "optlab"):
        for _ in range(2):
            jax.eval_shape(tx.init, params)
    told = sorted(record.args[0] for record in caplog.records)
    assert told == ["deep", "stacked: '^blocks/'", "thin", "unnamed"]
    table = optlab.describe(params, tx)
    assert sorted(table.doubts) == told
    lines = {line.split()[0]: line for line in str(table).splitlines()}
    assert "as many entries as 'embed'" in lines["unnamed"]
    assert lines["unnamed"].endswith("as many entries as 'embed'")
    assert "note" in lines["path"]
    assert str(table).count("default_roles(embeddings=...)") == 1


@pytest.mark.parametrize(
    ("path", "shape", "layout", "doubt"),
    [
        ("mlp/gating_einsum/w", (2, 16, 8), "einsum", "gemma 2 and 3"),
        ("up.conv_transpose.weight", (8, 4, 2, 2), "torch", "torch's (in, out"),
        ("layers/query/kernel", (3, 8, 2, 4), "flax", "stack of layers"),
        ("mlp/experts/v1", (4, 8, 16), "flax", "stack of layers"),
    ],
)
def test_layouts_that_names_leave_open_are_doubts(path, shape, layout, doubt):
    keys = key_path(path.split("/"))
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert doubt in optlab.default_roles(layout=layout).explain(keys, leaf)[1]


def test_stacks_that_disagree_name_two_leaves():
    params = {"layers": {"up": jnp.zeros((3, 4, 6)), "down": jnp.zeros((2, 6, 4))}}
    tx = optlab.root(1e-3, roles=optlab.default_roles(stacked="^layers/"))
    with pytest.raises(ValueError, match=r"2 in 'layers/down' and of 3 in 'layers/up'"):
        tx.init(params)


def test_patterns_may_name_their_axis():
    assert role_of("layers/up", (4, 12, 8), stacked={"^layers/": 1}) == Matrix(
        (0,), (2,)
    )
    assert role_of("layers/up", (4, 8, 12), stacked={"^layers/": -1}) == Matrix(
        (0,), (1,)
    )
    with pytest.raises(ValueError, match="the same axis off 'layers/up' twice"):
        role_of("layers/up", (4, 8, 12), stacked={"^layers/": 0, "up": 0})
    with pytest.raises(ValueError, match="stacked: the axis of 'x' is no integer"):
        optlab.default_roles(stacked={"x": "0"})
    with pytest.raises(ValueError, match="layout must be one of flax, torch"):
        optlab.default_roles(layout="keras")


def test_bad_patterns_and_missing_axes_are_named():
    with pytest.raises(ValueError, match=r"stacked: '\('"):
        optlab.default_roles(stacked=("(",))
    with pytest.raises(ValueError, match=r"stacked takes 1 axes off 'layers/x'"):
        role_of("layers/x", (), stacked=("layers",))


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("matrix", r"is 'matrix'; allowed are Matrix, Embedding and VECTOR"),
        (None, r"'a' of shape \(4, 6\) is None"),
        (Matrix((0,), (5,)), "the leaf has 2 axes"),
        (Embedding(2), "the leaf has 2 axes"),
        (Matrix((0,), (-2,)), "rows and columns"),
        (Matrix((), (0,)), "rows and columns"),
    ],
)
def test_answers_of_a_rule_are_checked(role, text):
    tx = optlab.cosmos(1e-3, roles=lambda path, leaf: role)
    with pytest.raises(ValueError, match=text):
        optlab.describe({"a": jnp.zeros((4, 6))}, tx)


def test_axes_of_a_role_may_count_from_the_end():
    params = {"a": jnp.zeros((3, 4, 6))}
    tx = optlab.cosmos(1e-3, rank=2, roles={"a": Matrix((-1,), (-2,))})
    assert optlab.describe(params, tx)[0].role == "3 matrices 6x4"
    with pytest.raises(ValueError, match=r"the order is describe\(params, tx\)"):
        optlab.describe(tx, params)


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
    mixed = {"a": Matrix((1,), (0,)), "b": Embedding(1), "c": None, "wte": None}
    params = {"a": params["b"], "b": params["b"], "c": params["b"], "wte": params["b"]}
    assert tree_roles(params, as_rule(mixed)) == mixed | {"c": VECTOR, "wte": EMBEDDING}
    with pytest.raises(ValueError, match="roles: 'a' is 'matrix'; allowed are"):
        as_rule({"a": "matrix"})
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
