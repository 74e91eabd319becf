"""Lanczos against dense Hessians in float64, bounds against simulated quadratics."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import sharding
from optlab.inside import sharpness
from optlab.inside import spectrum as lanczos


def problem():
    """A small network, its loss and its dense Hessian."""
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.standard_normal((8, 3))),
        "out": jnp.asarray(rng.standard_normal(8)),
    }
    x, y = jnp.asarray(rng.standard_normal((20, 3))), jnp.asarray(rng.random(20))

    def loss(p):
        return jnp.mean(jnp.square(jnp.tanh(x @ p["in"].T) @ p["out"] - y))

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = np.asarray(jax.hessian(lambda v: loss(unravel(v)))(flat))
    return params, loss, dense


def of_matrix(matrix):
    return lambda v: {"x": matrix @ v["x"]}


def test_quadrature_is_exact_for_polynomials_and_extremes_are_eigenvalues(x64):
    params, loss, dense = problem()

    def product(v):
        return optlab.hvp(loss, params, v)

    key = jax.random.key(1)
    order, draws = 12, 2
    found = jax.jit(
        lambda key: lanczos.spectrum(product, params, key, order=order, draws=draws)
    )(key)
    assert found.values.shape == found.weights.shape == (draws, order)
    eigenvalues = np.linalg.eigvalsh(dense)
    for row, own in enumerate(jax.random.split(key, draws)):
        start = jax.flatten_util.ravel_pytree(lanczos._random_unit(own, params))[0]
        start, values = np.asarray(start), np.asarray(found.values[row])
        for power in (1, 2, 7, 2 * order - 1):
            exact = start @ np.linalg.matrix_power(dense, power) @ start
            made = np.sum(np.asarray(found.weights[row]) * values**power)
            np.testing.assert_allclose(made, exact, rtol=1e-9)
        np.testing.assert_allclose(values[-1], eigenvalues[-1], rtol=1e-9)
    top = lanczos.top_eigenvalue(product, params, key, steps=20)
    np.testing.assert_allclose(top, eigenvalues[-1], rtol=1e-9)
    # More steps than parameters: all of the spectrum, each value once.
    full = lanczos.spectrum(product, params, key, order=100)
    np.testing.assert_allclose(full.values[0], eigenvalues, atol=1e-8)


def test_no_eigenvalue_is_found_twice_and_used_up_spaces_add_none():
    rng = np.random.default_rng(0)
    values = np.concatenate([[1e4, 3e3], rng.random(118)])
    basis = np.linalg.qr(rng.standard_normal((120, 120)))[0]
    matrix = jnp.asarray(basis * values @ basis.T, jnp.float32)
    like = {"x": jnp.zeros(120)}
    found = lanczos.spectrum(of_matrix(matrix), like, jax.random.key(0), order=40)
    large = np.asarray(found.values[0])[np.asarray(found.values[0]) > 10]
    np.testing.assert_allclose(np.sort(large), [3e3, 1e4], rtol=1e-4)
    few = jnp.diag(jnp.repeat(jnp.asarray([2.0, 5.0]), 60))
    found = lanczos.spectrum(of_matrix(few), like, jax.random.key(0), order=10)
    near = np.abs(np.asarray(found.values)[..., None] - np.asarray([2.0, 5.0])).min(-1)
    assert near.max() < 5.0  # a value that stands for nothing lies between the others
    real = np.asarray(found.weights[0]) > 1e-6
    np.testing.assert_allclose(near[0][real], 0, atol=1e-3)
    for matrix, value in ((jnp.eye(120), 1.0), (jnp.zeros((120, 120)), 0.0)):
        found = lanczos.spectrum(of_matrix(matrix), like, jax.random.key(0), order=5)
        np.testing.assert_allclose(found.values, value, atol=1e-5)


def test_density_integrates_to_one_and_has_the_share_of_each_cluster():
    matrix = jnp.diag(jnp.concatenate([jnp.full(90, -1.0), jnp.full(30, 3.0)]))
    found = lanczos.spectrum(
        of_matrix(matrix), {"x": jnp.zeros(120)}, jax.random.key(0), order=6, draws=8
    )
    grid, height = lanczos.density(found)
    width = grid[1] - grid[0]
    np.testing.assert_allclose(jnp.sum(height) * width, 1, rtol=1e-5)
    share = jnp.sum(jnp.where(grid < 1, height, 0)) * width
    np.testing.assert_allclose(share, 0.75, atol=0.05)
    # Also where peaks are far narrower than a cell, and where there are few draws.
    values, weights = np.asarray([[-900.0, 1.0, 77.7]]), np.asarray([[0.2, 0.5, 0.3]])
    grid, height = lanczos.density(
        lanczos.Spectrum(
            jnp.asarray(values, "float32"), jnp.asarray(weights, "float32")
        ),
        50,
    )
    mass = np.asarray(height) * float(grid[1] - grid[0])
    for value, weight in zip(values[0], weights[0], strict=True):
        near = np.abs(np.asarray(grid) - value) < 25
        np.testing.assert_allclose(mass[near].sum(), weight, atol=1e-4)


def test_a_mesh_gives_the_same_numbers_and_keeps_the_layout():
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
        "out": jnp.asarray(rng.standard_normal(16), jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((32, 8)), jnp.float32)

    def all_of_it(params, x):
        def loss(p):
            return jnp.mean(jnp.square(jnp.tanh(x @ p["in"].T) @ p["out"]))

        def product(v):
            return optlab.hvp(loss, params, v)

        key = jax.random.key(0)
        found = lanczos.spectrum(product, params, key, order=6)
        return *found, lanczos.top_eigenvalue(product, params, key, steps=10)

    whole = jax.jit(all_of_it)(params, x)
    mesh = sharding.make_mesh({"data": 8})
    specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
    cut = jax.device_put(params, sharding.to_shardings(mesh, specs))
    rows = jax.device_put(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    for one, other in zip(whole, jax.jit(all_of_it)(cut, rows), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_bad_arguments_are_named():
    like, key = {"x": jnp.zeros(3)}, jax.random.key(0)
    for bad in ({"order": 0}, {"order": 2, "draws": 1.5}):
        with pytest.raises(ValueError, match=next(reversed(bad))):
            lanczos.spectrum(lambda v: v, like, key, **bad)
    with pytest.raises(ValueError, match=r"^params must have"):
        lanczos.top_eigenvalue(lambda v: v, {}, key)
    with pytest.raises(ValueError, match=r"^points"):
        lanczos.density(lanczos.Spectrum(jnp.ones((1, 1)), jnp.ones((1, 1))), 1)
    assert lanczos.largest_order({"x": jnp.zeros(100, jnp.bfloat16)}, 12_000) == 22
    with pytest.raises(ValueError, match=r"^budget_bytes .* 4,000 .* 3,999"):
        lanczos.largest_order({"x": jnp.zeros(100)}, 3_999)
    with pytest.raises(ValueError, match=r"^kind .* got 'adam'"):
        sharpness.stability_bound(0.1, kind="adam")


@pytest.mark.parametrize(
    ("tx", "momentum", "kind"),
    [
        (optax.sgd, 0.0, "heavy_ball"),
        (lambda lr: optax.sgd(lr, 0.9), 0.9, "heavy_ball"),
        (lambda lr: optax.sgd(lr, 0.9, nesterov=True), 0.9, "nesterov"),
        (
            lambda lr: optax.chain(optax.ema(0.9, debias=False), optax.scale(-lr)),
            0.9,
            "average",
        ),
    ],
)
def test_the_bound_is_where_a_quadratic_becomes_unstable(tx, momentum, kind, x64):
    curvature = 3.0
    rate = sharpness.stability_bound(curvature, momentum=momentum, kind=kind)

    def ends(learning_rate):
        made = tx(learning_rate)

        def step(carry, _):
            x, state = carry
            updates, state = made.update(curvature * x, state, x)
            return (x + updates, state), jnp.abs(x)

        x = jnp.ones(())
        return jax.lax.scan(step, (x, made.init(x)), None, 2000)[1]

    assert ends(0.98 * rate)[-1] < 1e-3
    assert ends(1.02 * rate)[-1] > 1e3


ALL = optlab.registry.names()
# Name -> arguments, and those that the state's diagonal is made of.
DIAGONAL = {
    "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "spam": {
        **{"b1": 0.9, "b2": 0.999, "eps": 1e-6},
        **{"reset_interval": 3, "warmup_steps": 2},
    },
    "adahessian": {
        **{"b1": 0.9, "b2": 0.999, "eps": 1e-4},
        **{"hessian_power": 0.7, "hessian_interval": 2},
    },
}


@pytest.mark.parametrize("name", DIAGONAL)
def test_the_diagonal_of_a_state_is_that_of_its_last_step(name, x64):
    """`update = -rate P^-1 m`."""
    entry, given = optlab.registry.get(name), DIAGONAL[name]
    params = {"w": np.ones((4, 3)), "b": np.ones(3)}
    rate = 0.125
    tx = optlab.inject_hyperparams(
        lambda learning_rate: entry.factory(learning_rate, **given)
    )(learning_rate=rate)
    rng = np.random.default_rng(0)
    state, step = tx.init(params), jax.jit(tx.update)
    assert sharpness.diagonal_preconditioner(state, params, given) is None
    for _ in range(4):
        grads = {x: rng.standard_normal(params[x].shape) for x in params}
        extra = {x: grads for x in entry.needs}
        updates, state = step(grads, state, params, **extra)
    found = sharpness.diagonal_preconditioner(state, params, given)
    (own,) = sharpness._nodes(state)
    for x in params:
        step_of = -rate * np.asarray(own.mu[x]) / np.asarray(found[x])
        np.testing.assert_allclose(updates[x], step_of, rtol=1e-9)


def test_a_step_that_no_diagonal_makes_has_none():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    given = {x: y for values in DIAGONAL.values() for x, y in values.items()}
    sparse = optlab.spam(0.1, density=0.5)
    made = {name: optlab.registry.get(name).factory(0.1) for name in ALL}
    for name, tx in {**made, "sparse": sparse}.items():
        shapes = jax.eval_shape(tx.init, params)
        state = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
        found = sharpness.diagonal_preconditioner(state, params, given)
        assert (found is not None) == (name in DIAGONAL), name
        edge = sharpness.edge_of_stability(state, params, given, 0.1)
        assert (edge is not None) == (name in DIAGONAL or name == "sgd"), name
        if edge is not None:
            bound = 2.0 if name == "sgd" else 2 * 1.9 / 0.1
            assert edge.bound == pytest.approx(bound / 0.1)


def test_the_preconditioned_product_is_that_of_the_dense_matrix(x64):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 6))
    matrix = matrix + matrix.T
    diagonal = rng.random(6) + 0.1
    product = sharpness.preconditioned(
        of_matrix(jnp.asarray(matrix)), {"x": jnp.asarray(diagonal)}
    )
    top = lanczos.top_eigenvalue(product, {"x": jnp.zeros(6)}, jax.random.key(0))
    dense = matrix / np.sqrt(diagonal[:, None] * diagonal[None])
    np.testing.assert_allclose(top, np.linalg.eigvalsh(dense)[-1], rtol=1e-9)
