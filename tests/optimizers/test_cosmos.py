"""COSMOS against the authors' recorded trajectories, and its own corner cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from experiments.flops import count_flops
from tests.golden import follow, load


def optimizer(meta):
    """The authors' arguments in ours."""
    rate, ratio, decay = meta["learning_rate"], meta["lr_ratio"], meta["weight_decay"]
    return optlab.cosmos(
        rate * ratio,
        b1=meta["b1"],
        b2=meta["b2"],
        eps=meta["eps"],
        rank=meta["rank"],
        gamma=meta["gamma"],
        nesterov=meta["nesterov"],
        ns_steps=meta["ns_steps"],
        weight_decay=decay / ratio,
        adam_learning_rate=rate,
        adam_weight_decay=decay,
        adam_b1=0.9,
        adam_b2=meta["b2"],
        adam_eps=meta["eps"],
    )


@pytest.mark.parametrize("name", ["cosmos_a", "cosmos_b"])
def test_follows_the_authors_code_in_float64(name, x64):
    data = load(name)
    assert follow(optimizer(data.meta), data) < 1e-9


@pytest.mark.parametrize("name", ["cosmos_a", "cosmos_b"])
def test_follows_the_authors_code_in_float32(name):
    data = load(name)
    assert follow(optimizer(data.meta), data) < 5e-4


def llama_130m():
    """Shapes of the LLaMA-130M of the papers: 12 layers, 768 wide, 2048 inside."""
    blocks = {
        **dict.fromkeys(("query", "key", "value", "out"), (12, 768, 768)),
        **dict.fromkeys(("gate", "up"), (12, 768, 2048)),
        "down": (12, 2048, 768),
        "norm": (12, 768),
    }
    shapes = {"layers": blocks, "embed": (32000, 768), "head": (768, 32000)}
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_state_has_the_papers_size():
    """`d_in d_out + d_in r + r^2 + r d_out` a matrix, and Adam elsewhere."""
    rank, params = 64, llama_130m()
    tx = optlab.cosmos(1e-2, rank=rank, roles=optlab.default_roles(("^layers/",)))
    state = jax.eval_shape(tx.init, params)
    counts = [x for x in jax.tree.leaves(state) if not x.shape]
    assert len(counts) == 2
    held = sum(4 * x.size for x in jax.tree.leaves(state)) - 4 * len(counts)
    expected = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if "layers" in str(path) and leaf.ndim == 3:
            layers, m, n = leaf.shape
            expected += layers * (m * n + m * rank + rank**2 + rank * n)
        else:
            expected += 2 * leaf.size
    assert held == 4 * expected


def run(tx, params, grads, steps=3):
    """The updates of each step."""
    state, out = tx.init(params), []
    update = jax.jit(tx.update)
    for step in range(steps):
        scaled = jax.tree.map(lambda g, s=step: jnp.roll(g, s, -1) * (1 + s), grads)
        updates, state = update(scaled, state, params)
        out.append(updates)
    return out


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (5, 1), (7, 7)])
def test_the_update_has_the_learning_rate_as_rms(shape):
    params = {"w": gaussian(*shape)}
    for updates in run(optlab.cosmos(3e-2, rank=4), params, params):
        rms = jnp.sqrt(jnp.mean(updates["w"] ** 2))
        np.testing.assert_allclose(rms, 3e-2, rtol=1e-5)


def test_a_rank_above_the_matrix_is_cut():
    params = {"w": gaussian(6, 9)}
    whole, above = (
        run(optlab.cosmos(1e-2, rank=rank), params, params) for rank in (6, 1000)
    )
    np.testing.assert_array_equal(whole[-1]["w"], above[-1]["w"])


def test_at_full_rank_nothing_is_left_to_orthogonalize():
    """The rest is rounding then, and its weight must not matter."""
    params = {"w": gaussian(6, 9)}
    none, much = (
        run(optlab.cosmos(1e-2, rank=6, gamma=gamma), params, params)
        for gamma in (0.0, 5.0)
    )
    for a, b in zip(none, much, strict=True):
        np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


def test_a_gradient_of_low_rank_leaves_no_noise_at_the_first_step():
    """`N` lies in the span of the basis, so gamma has nothing to scale up."""
    params = {"w": gaussian(16, 2) @ gaussian(2, 12, seed=1)}
    (none,), (much,) = (
        run(optlab.cosmos(1e-2, rank=3, gamma=gamma), params, params, steps=1)
        for gamma in (0.0, 5.0)
    )
    np.testing.assert_allclose(none["w"], much["w"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_directions_of_nothing_but_rounding_make_no_step(gamma):
    """Of a constant gradient of rank one every entry steps alike, whatever r is."""
    shapes = [(2, 3), (3, 2), (6, 4), (5, 9), (16, 16)]
    params = {f"w{m}x{n}": jnp.zeros((m, n)) for m, n in shapes}
    grads = jax.tree.map(lambda p: p + 1, params)
    tx = optlab.cosmos(0.1, rank=4, gamma=gamma)
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(4):
        updates, state = update(grads, state, params)
        for leaf in jax.tree.leaves(updates):
            np.testing.assert_allclose(leaf, -0.1, rtol=1e-4)


def test_convolutions_are_matrices_of_their_patches(x64):
    kernel = gaussian(3, 3, 2, 8).astype(jnp.float64)
    (conv,) = run(optlab.cosmos(1e-2, rank=3), {"conv": kernel}, {"conv": kernel}, 1)
    flat = {"w": kernel.reshape(18, 8)}
    (dense,) = run(optlab.cosmos(1e-2, rank=3), flat, flat, 1)
    np.testing.assert_allclose(conv["conv"].reshape(18, 8), dense["w"], rtol=1e-9)


def test_without_nesterov_it_is_the_average_of_the_gradients(x64):
    """With b1 = 0 the average is the gradient either way."""
    params = {"w": gaussian(6, 9).astype(jnp.float64)}
    plain, nesterov = (
        run(optlab.cosmos(1e-2, b1=0.0, rank=3, nesterov=flag), params, params)
        for flag in (False, True)
    )
    np.testing.assert_allclose(plain[-1]["w"], nesterov[-1]["w"], atol=1e-12)
    heavy = run(optlab.cosmos(1e-2, b1=0.9, rank=3, nesterov=False), params, params)
    assert np.abs(heavy[-1]["w"] - plain[-1]["w"]).max() > 1e-3


def test_mu_dtype_is_the_momentums():
    params = {"w": gaussian(6, 9), "bias": gaussian(9)}
    tx = optlab.cosmos(1e-2, rank=3, mu_dtype=jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)
    dtypes = {
        path[-2].name: leaf.dtype
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if leaf.shape
    }
    assert dtypes.pop("mu") == jnp.bfloat16
    assert set(dtypes.values()) == {jnp.dtype(jnp.float32)}


def test_the_transform_alone_names_the_leaf_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"'bias' of shape .* is no hidden matrix"):
        optlab.scale_by_cosmos().init({"bias": jnp.zeros(3)})


def test_a_steady_step_costs_little_over_roots():
    """The seven matrices of a LLaMA-130M block, with the same coefficients."""
    shapes = [(768, 768)] * 4 + [(768, 2048)] * 2 + [(2048, 768)]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def flops(tx):
        state = jax.eval_shape(tx.init, params)
        return count_flops(tx.update, params, state, params, cheapest_branch=True).total

    ours = flops(optlab.cosmos(1e-2, rank=64))
    assert ours < 1.1 * flops(optlab.root(1e-2, ns_coeffs="muon"))
