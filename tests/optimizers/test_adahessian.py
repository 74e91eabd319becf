"""AdaHessian: the authors' training run again, blocks by role, Hessian steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from tests.golden import load


def loss_fn(params, x, y):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def retrain(data, **kwargs):
    """Largest deviations of losses and parameters, with the recorded probes."""
    meta = data.meta
    names = ("b1", "b2", "eps", "weight_decay", "hessian_power")
    arguments = {name: meta[name] for name in names}
    tx = optlab.adahessian(meta["learning_rate"], **arguments, **kwargs)
    x, y = (jnp.asarray(data.arrays[f"data/{k}"]) for k in "xy")

    @jax.jit
    def step(params, state, probes):
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        products = optlab.hvp(loss_fn, params, probes, x, y)
        diag = jax.tree.map(jnp.multiply, probes, products)
        updates, state = tx.update(grads, state, params, hessian_diag=diag)
        return optax.apply_updates(params, updates), state, loss

    params = jax.tree.map(jnp.asarray, data.init)
    state, worst = tx.init(params), 0.0
    for i, expected in enumerate(data.arrays["loss"]):
        probes = {k: jnp.asarray(data.arrays[f"rademacher/{k}"][i]) for k in params}
        probes = jax.tree.map(lambda z, p: z.astype(p.dtype), probes, params)
        params, state, loss = step(params, state, probes)
        worst = max(worst, abs(float(loss) - expected))
        for key, value in params.items():
            worst = max(worst, float(np.abs(value - data.params[key][i]).max()))
    return worst


def test_follows_the_authors_training_in_float64(x64):
    assert retrain(load("adahessian_a")) < 1e-9


def test_the_recorded_training_averages_over_inputs(x64):
    """The blocks matter: without them the run is another one."""
    assert retrain(load("adahessian_a"), spatial_averaging=False) > 1e-2


SHAPES = {
    "attention": {"out": {"kernel": (2, 3, 6)}, "query": {"kernel": (6, 2, 3)}},
    "conv": {"kernel": (3, 2, 4, 5)},
    "embed": {"embedding": (7, 6)},
    "head": {"kernel": (6, 7)},
    "layers": {"kernel": (2, 4, 6), "bias": (2, 6)},
    "norm": {"scale": (6,)},
}
BLOCK_AXES = {
    "attention/out": (0, 1),
    "attention/query": 0,
    "conv": (0, 1),
    "embed": 1,
    "head": 0,
    "layers/kernel": 1,
    "layers/bias": (),
    "norm": (),
}
ROLES = optlab.default_roles(stacked=("^layers/",))


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def second_moment(diag, **kwargs):
    """The square root of v / (1 - b2) after one step: d_s."""
    tx = optlab.scale_by_adahessian(b2=0.75, roles=ROLES, **kwargs)
    _, state = tx.update(diag, tx.init(diag), hessian_diag=diag)
    return jax.tree.map(lambda v: 2 * np.sqrt(v), state.nu)


@pytest.mark.parametrize("average", ["abs", "signed"])
def test_blocks_follow_the_roles(average, x64):
    diag = tree()
    found = jax.tree_util.tree_flatten_with_path(second_moment(diag, average=average))
    for (path, d_s), d in zip(found[0], jax.tree.leaves(diag), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        (axes,) = (a for prefix, a in BLOCK_AXES.items() if name.startswith(prefix))
        values = np.abs(d) if average == "abs" else np.asarray(d)
        mean = np.abs(values.mean(axes, keepdims=True)) if axes != () else np.abs(d)
        np.testing.assert_allclose(d_s, np.broadcast_to(mean, d.shape), rtol=1e-12)


def test_blocks_of_a_given_size_are_neighbours_in_the_authors_layout(x64):
    diag = tree()
    found = second_moment(diag, spatial_averaging=4)

    def blocks(flat):
        parts = [flat[i : i + 4] for i in range(0, len(flat), 4)]
        return np.concatenate([np.full_like(p, np.abs(p).mean()) for p in parts])

    # (inputs, outputs) is flattened as (outputs, inputs), each layer on its own.
    for one, d in zip(found["layers"]["kernel"], diag["layers"]["kernel"], strict=True):
        np.testing.assert_allclose(
            one.T.ravel(), blocks(np.asarray(d).T.ravel()), rtol=1e-12
        )
    table, d = found["embed"]["embedding"], np.asarray(diag["embed"]["embedding"])
    np.testing.assert_allclose(table.ravel(), blocks(d.ravel()), rtol=1e-12)
    order = (3, 2, 0, 1)
    np.testing.assert_allclose(
        found["conv"]["kernel"].transpose(order).ravel(),
        blocks(np.asarray(diag["conv"]["kernel"]).transpose(order).ravel()),
        rtol=1e-12,
    )
    np.testing.assert_allclose(found["norm"]["scale"], np.abs(diag["norm"]["scale"]))


def test_hessian_steps_and_the_steps_between(x64):
    """v is fresh at 1, 4, 7; between, what is passed counts for nothing, NaN even."""
    b1, b2, eps, k, interval = 0.9, 0.99, 1e-4, 0.5, 3
    tx = optlab.scale_by_adahessian(b1, b2, eps, k, hessian_interval=interval)
    rng = np.random.default_rng(0)
    grads, diags = rng.standard_normal((2, 8, 5))
    params = {"b": jnp.zeros(5)}
    state, update = tx.init(params), jax.jit(tx.update)
    m, v, n = np.zeros(5), np.zeros(5), 0
    for t, (g, d) in enumerate(zip(grads, diags, strict=True), start=1):
        fresh = optlab.is_hessian_step(t - 1, interval)
        assert fresh == (t in (1, 4, 7))
        updates, state = update(
            {"b": jnp.asarray(g)},
            state,
            hessian_diag={"b": jnp.asarray(d if fresh else np.full(5, np.nan))},
        )
        m = b1 * m + (1 - b1) * g
        if fresh:
            v, n = b2 * v + (1 - b2) * d**2, n + 1
        denominator = np.sqrt(v / (1 - b2**n)) ** k + eps
        expected = m / (1 - b1**t) / denominator
        np.testing.assert_allclose(updates["b"], expected, rtol=1e-12)
    assert update._cache_size() == 1


def test_trains_with_the_estimator_and_an_interval():
    """One compiled step, and the loss of a small net falls."""
    data = load("adahessian_a")
    x, y = (jnp.asarray(data.arrays[f"data/{k}"]) for k in "xy")
    x = x.astype(jnp.float32)
    tx = optlab.adahessian(0.15, hessian_interval=3)
    measure = optlab.value_grad_and_periodic_hessian_diag(loss_fn, 3)

    @jax.jit
    def step(params, state, count):
        key = jax.random.fold_in(jax.random.key(0), count)
        loss, grads, diag = measure(params, key, count, x, y)
        updates, state = tx.update(grads, state, params, hessian_diag=diag)
        return optax.apply_updates(params, updates), state, loss

    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), data.init)
    state, losses = tx.init(params), []
    for count in range(30):
        params, state, loss = step(params, state, jnp.asarray(count, jnp.int32))
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("averaging", [True, 4])
def test_degenerate_gradients_stay_finite(averaging):
    params = {k: tree()[k] for k in ("layers", "norm")}
    tx = optlab.adahessian(0.15, roles=ROLES, spatial_averaging=averaging)
    update = jax.jit(lambda g, s: tx.update(g, s, params, hessian_diag=g))
    for scale in (0.0, 1e-20, 1e20):
        state = tx.init(params)
        for factor in (scale, scale, 1.0):
            gradient = jax.tree.map(lambda x, f=factor: f * x, params)
            updates, state = update(gradient, state)
            assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_a_missing_hessian_diag_is_named():
    assert optlab.registry.get("adahessian").needs == ("hessian_diag",)
    params = {"b": jnp.zeros(3)}
    tx = optlab.adahessian(0.1)
    with pytest.raises(ValueError, match="hessian_diag"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("average", "none"),
        ("hessian_interval", 0),
        ("spatial_averaging", -1),
        ("spatial_averaging", 2.5),
        ("hessian_power", -1.0),
        ("b2", 1.0),
        ("eps", -1e-8),
    ],
)
def test_an_argument_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        optlab.adahessian(0.1, **{name: value})
