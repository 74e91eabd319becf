"""SPAM against the authors' recorded trajectory, its pieces, and sparse momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from tests.golden import follow, load

ARGUMENTS = (
    *("b1", "b2", "eps", "spike_threshold"),
    *("reset_interval", "warmup_steps", "clip_start_step"),
)


def authors(meta, **kwargs):
    arguments = {name: meta[name] for name in ARGUMENTS}
    return optlab.spam(meta["learning_rate"], **arguments, **kwargs)


def test_follows_the_authors_code_in_float64(x64):
    data = load("spam_a")
    assert follow(authors(data.meta), data) < 1e-9


def test_follows_the_authors_code_in_float32():
    data = load("spam_a")
    assert follow(authors(data.meta), data) < 1e-5


def run(tx, gradients, params=None):
    """The updates along a list of gradients, and the last state."""
    params = gradients[0] if params is None else params
    update = jax.jit(tx.update)
    state, history = tx.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        history.append(updates)
    assert update._cache_size() == 1
    return jax.tree.map(lambda *x: np.stack(x), *history), state


def gradients(steps, shape=(6, 10), seed=0, spike=1000.0):
    """Gradients in which one entry in twenty is a spike."""
    rng = np.random.default_rng(seed)
    shape = (steps, *shape)
    values = rng.standard_normal(shape) * np.where(rng.random(shape) < 0.05, spike, 1)
    return [{"w": jnp.asarray(v)} for v in values]


def test_is_its_pieces_around_adam(x64):
    fused = optlab.scale_by_spam(
        eps=0.0, spike_threshold=20.0, reset_interval=7, warmup_steps=3,
        clip_start_step=2,
    )  # fmt: skip
    pieces = optax.chain(
        optlab.clip_spikes(20.0, reset_interval=7, clip_start_step=2),
        optlab.reset_every(optax.scale_by_adam(eps=0.0), 7, warmup_steps=3),
    )
    steps = gradients(17)
    one, other = run(fused, steps)[0]["w"], run(pieces, steps)[0]["w"]
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_without_threshold_and_resets_is_adam(x64):
    steps = gradients(9)
    spam = optlab.scale_by_spam(eps=0.0, spike_threshold=0.0, reset_interval=0)
    adam = optax.scale_by_adam(eps=0.0)
    np.testing.assert_allclose(
        run(spam, steps)[0]["w"], run(adam, steps)[0]["w"], rtol=1e-12, atol=1e-14
    )


def test_an_entry_that_was_silent_is_not_frozen():
    """The authors' code sets its gradient to 0 from clip_start_step on."""
    steps = [{"w": jnp.zeros((2, 3))}] * 4 + [{"w": jnp.ones((2, 3))}]
    updates, state = run(
        optlab.scale_by_spam(clip_start_step=2, reset_interval=50), steps
    )
    assert not updates["w"][:4].any()
    assert (updates["w"][4] > 0.5).all()
    np.testing.assert_allclose(state.nu["w"], 1e-3, rtol=1e-5)


def test_clip_spikes_cuts_what_is_above_the_threshold(x64):
    clip = optlab.clip_spikes(4.0, 0.5, reset_interval=5, clip_start_step=2)
    values = [1.0, -100.0, 0.5, 9.0, 50.0, 60.0, 70.0]
    expected, v = [], 0.0
    for t, g in enumerate(values, start=1):
        v = 0.0 if t % 5 == 0 else v
        clips = t % 5 >= 2 and v > 0
        expected.append(np.sign(g) * min(abs(g), np.sqrt(4 * v)) if clips else g)
        v = 0.5 * v + 0.5 * expected[-1] ** 2
    assert expected[1] != -100 and expected[4:6] == [50, 60] and expected[6] == 70
    updates, _ = run(clip, [{"w": jnp.full((2,), g)} for g in values])
    np.testing.assert_allclose(updates["w"][:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("counts", [False, True])
def test_reset_every_starts_the_moments_again(counts, x64):
    tx = optlab.reset_every(optax.scale_by_adam(), 4, counts=counts)
    steps = gradients(6)
    updates, state = run(tx, steps)
    np.testing.assert_array_equal(
        updates["w"][:3], run(optax.scale_by_adam(), steps[:3])[0]["w"]
    )
    after, again = run(optax.scale_by_adam(), steps[3:])
    np.testing.assert_array_equal(state.inner_state.mu["w"], again.mu["w"])
    assert int(state.inner_state.count) == (3 if counts else 6)
    assert np.allclose(updates["w"][3:], after["w"]) == counts


# Columns that do not divide, that do, a convolution and a stack.
SHAPES = {
    "dense": {"kernel": (12, 10)},
    "even": {"kernel": (5, 8)},
    "conv": {"kernel": (3, 3, 2, 9)},
    "layers": {"kernel": (2, 4, 6)},
    "embed": {"embedding": (11, 4)},
    "norm": {"scale": (6,)},
}
KEPT = {"dense": (12, 4), "even": (5, 3), "conv": (18, 3), "layers": (2, 4, 2)}
ROLES = optlab.default_roles(stacked=("^layers/",))


def tree(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def sparse(**kwargs):
    defaults = {"density": 0.4, "reset_interval": 4, "warmup_steps": 0, "roles": ROLES}
    return optlab.scale_by_spam(**{**defaults, **kwargs})


@pytest.fixture(scope="module")
def sparse_run():
    """Updates of nine steps, with resets at the fourth and the eighth."""
    return run(sparse(spike_threshold=0.0), [tree(seed) for seed in range(9)])


def test_sparse_momentum_updates_the_kept_entries_of_every_row(sparse_run):
    updates, state = sparse_run
    for name, shape in KEPT.items():
        (moved,), (mu,) = updates[name].values(), state.mu[name].values()
        assert mu.shape == shape
        counts = np.count_nonzero(moved, -1)
        assert (counts == shape[-1]).all()
        # The same entries within a window, others in the next one.
        chosen = moved != 0
        for start, stop in ((0, 3), (3, 7), (7, 9)):
            assert (chosen[start:stop] == chosen[start]).all()
        assert (chosen[2] != chosen[3]).any() and (chosen[6] != chosen[7]).any()
    for name in ("embed", "norm"):
        (moved,), (mu,) = updates[name].values(), state.mu[name].values()
        assert mu.shape == moved.shape[1:] and moved.all()


def test_kept_entries_follow_dense_spam(sparse_run):
    """Within the first window they are what SPAM with all momenta makes of them."""
    dense, _ = run(
        sparse(density=1.0, spike_threshold=0.0), [tree(seed) for seed in range(3)]
    )
    for one, other in zip(*map(jax.tree.leaves, (sparse_run[0], dense)), strict=True):
        kept = one[:3] != 0
        np.testing.assert_allclose(one[:3][kept], other[kept], rtol=1e-5, atol=1e-6)


def test_the_choice_is_a_function_of_seed_and_resets(sparse_run):
    """No matter what the gradients were, or where training was resumed."""
    params, update = tree(), jax.jit(sparse().update)
    state = sparse().init(params)._replace(count=jnp.asarray(7, jnp.int32))
    updates, _ = update(tree(seed=3), state, params)
    other_key = sparse(seed=1).init(params).key
    other, _ = update(tree(seed=3), state._replace(key=other_key), params)
    for name in KEPT:
        chosen = sparse_run[0][name]["kernel"][7] != 0
        np.testing.assert_array_equal(updates[name]["kernel"] != 0, chosen)
        assert ((np.asarray(other[name]["kernel"]) != 0) != chosen).any()


@pytest.mark.parametrize("n", [8, 10])
def test_every_entry_is_kept_equally_often(n):
    """Also where the runs of columns have unequal lengths; rows choose apart."""
    tx = sparse(reset_interval=1, clip_start_step=2)
    params = {"w": jnp.ones((100, n))}
    state, kept, windows = tx.init(params), 0, 150
    update = jax.jit(tx.update)
    for _ in range(windows):
        updates, state = update(params, state)
        kept += np.asarray(updates["w"] != 0).astype(int)
    k = state.mu["w"].shape[-1]
    # 15000 rows a column, dependent within a window by the common turn alone.
    frequency = kept.mean(0) / windows
    np.testing.assert_allclose(frequency, k / n, atol=0.04)
    assert (np.asarray(updates["w"][0]) != np.asarray(updates["w"])).any()


def test_state_of_the_chosen_matrices_is_a_quarter_of_adams():
    params = {
        "layers": {"kernel": jax.ShapeDtypeStruct((4, 256, 1024), jnp.bfloat16)},
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)},
        "out": {"kernel": jax.ShapeDtypeStruct((1024, 256), jnp.float32)},
    }

    def size(x):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))

    spam = jax.eval_shape(sparse(density=0.25).init, params)
    adam = jax.eval_shape(
        optax.scale_by_adam().init,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params),
    )
    assert spam.key.shape == (2,) and spam.key.dtype == jnp.uint32
    assert 4 * size((spam.mu, spam.nu)) == size((adam.mu, adam.nu))
    assert size(spam) == size((spam.mu, spam.nu)) + 12


def test_no_sort_is_in_the_sparse_step():
    params = tree()
    tx = sparse()
    program = str(jax.make_jaxpr(tx.update)(params, tx.init(params)))
    assert "threefry" in program or "random_bits" in program
    assert " sort[" not in program and "scatter" not in program


def test_stacked_matrices_are_separate_ones(x64):
    """Each slice moves as its own rows do alone, at the entries chosen for it."""
    params = {
        "layers": {"kernel": jnp.asarray(np.random.default_rng(0).random((2, 4, 6)))}
    }
    stacked, _ = run(sparse(), [params] * 6)
    single, _ = run(sparse(density=1.0), [{"w": params["layers"]["kernel"][1]}] * 6)
    moved = stacked["layers"]["kernel"][:, 1]
    np.testing.assert_allclose(moved[moved != 0], single["w"][moved != 0], rtol=1e-12)
    assert (moved[0] != 0).sum() == 8


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_degenerate_gradients_stay_finite(density):
    tx = sparse(density=density, clip_start_step=2, reset_interval=5)
    params = {key: tree()[key] for key in ("dense", "norm")}
    update = jax.jit(tx.update)
    for scale in (0.0, 1e-20, 1e20):
        state = tx.init(params)
        for factor in (scale, scale, scale, scale, 1.0, 1.0):
            gradient = jax.tree.map(lambda x, f=factor: f * x, params)
            updates, state = update(gradient, state)
            assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
        assert all(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("density", 0.0),
        ("density", 1.5),
        ("clip_start_step", 1),
        ("reset_interval", -1),
        ("warmup_steps", 1.5),
        ("spike_threshold", -1.0),
        ("b2", 1.0),
    ],
)
def test_an_argument_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        optlab.spam(1e-3, **{name: value})


def test_sparse_momentum_without_any_leaf():
    tx = sparse()
    assert tx.update({}, tx.init({}))[0] == {}
