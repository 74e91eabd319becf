"""Steps of two papers on convex problems, and the Step Law, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab


def logistic(rows=40, width=6):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, width)) * np.logspace(0, 1.5, width)
    y = np.sign(rng.standard_normal(rows))

    def loss(p):
        margins = y * (x[:, :3] @ p["a"] + x[:, 3:] @ p["b"])
        weights = jnp.sum(jnp.square(p["a"])) + jnp.sum(jnp.square(p["b"]))
        return jnp.mean(jax.nn.softplus(-margins)) + 0.005 * weights

    return loss, {"a": jnp.ones(3), "b": -jnp.ones(3)}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]), np.asarray(tree["b"])])


def test_a_newton_step_is_that_of_the_dense_matrix(x64):
    loss, params = logistic()

    def of_vector(v):
        return loss({"a": v[:3], "b": v[3:]})

    gamma, step = 1.0, jax.jit(lambda p, g: optlab.normalized_newton_step(loss, p, g))
    everything = jax.jit(
        lambda v: (*jax.value_and_grad(of_vector)(v), jax.hessian(of_vector)(v))
    )

    def exact(v):
        return map(np.asarray, everything(v))

    norms, found = [], None
    for _ in range(12):
        x = flat(params)
        value, g, hessian = exact(x)
        norm = np.linalg.norm(g)
        for tries in range(1, 41):
            tried = tries
            shift = norm / (gamma + 1e-8)
            new = x - np.linalg.solve(hessian + shift * np.eye(6), g)
            after, slope, _ = exact(new)
            good = value - after >= slope @ slope / (8 * shift)
            gamma = 2 * gamma if good else gamma / 2
            if good:
                break
        found = step(params, found.gamma if found else 1.0)
        np.testing.assert_allclose(flat(found.params), new, atol=1e-7)
        np.testing.assert_allclose(found.gamma, gamma)
        assert int(found.tries) == tried and bool(found.accepted)
        np.testing.assert_allclose(found.loss, after, rtol=1e-9)
        params = found.params
        norms.append(norm)
        if norm < 1e-7:
            break
    assert norms[-1] < 1e-6 * norms[0]  # in far fewer steps than gradient descent
    flat_loss = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    still = optlab.normalized_newton_step(
        lambda p: jnp.sum(jnp.square(p["a"])), flat_loss, 1.0
    )
    assert not still.accepted and (flat(still.params) == 0).all()


def test_a_target_step_ends_at_the_outputs_that_a_gradient_asks_for(x64):
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((5, 8)), rng.standard_normal(5)

    def model(w, x):
        return x @ w

    def loss(z, y):
        return jnp.mean(jax.nn.softplus(-y * z))

    w, eta = jnp.ones(8), 2.0
    outputs = inputs @ np.ones(8)
    slope = np.asarray(jax.grad(loss)(jnp.asarray(outputs), targets))
    rate = eta / np.linalg.norm(inputs, 2) ** 2
    run = jax.jit(
        lambda w, steps: optlab.target_step(
            *(model, loss, w, inputs, targets),
            **{"tx": optax.sgd(rate), "eta": eta, "steps": steps},
        ),
        static_argnums=1,
    )
    new, value = run(w, 3000)
    np.testing.assert_allclose(inputs @ new, outputs - eta * slope, atol=1e-8)
    np.testing.assert_allclose(value, loss(outputs, targets))
    # One inner step is a gradient step of the loss itself.
    new, _ = run(w, 1)
    np.testing.assert_allclose(new, 1 - rate * inputs.T @ slope, rtol=1e-9)


def test_the_step_law_is_its_equation_inside_its_range_only():
    found = optlab.step_law(1e9, 1e11)
    assert found.learning_rate == pytest.approx(1.79 * 10 ** (-9 * 0.713 + 11 * 0.307))
    assert found.batch_tokens == pytest.approx(0.58 * 10 ** (11 * 0.571))
    assert optlab.step_law(6e7, 2e9).learning_rate > found.learning_rate
    for parameters in (5.9e7, 1.1e9):
        with pytest.raises(ValueError, match=r"^parameters must be from 6e\+07 to"):
            optlab.step_law(parameters, 1e9)
    for bad in ((1e9, 0), (-1, 1e9), (1e9, float("nan"))):
        with pytest.raises(ValueError, match=r"^(parameters|tokens)"):
            optlab.step_law(*bad)


def test_bad_arguments_are_named():
    loss, params = logistic()
    for bad in ({"tries": 0}, {"eps": 0.0}, {"solver_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optlab.normalized_newton_step(loss, params, 1.0, **bad)
    for bad in ({"eta": 0.0, "steps": 1}, {"eta": 1.0, "steps": 0}):
        with pytest.raises(ValueError, match=r"eta|steps"):
            optlab.target_step(jnp.dot, jnp.sum, 0, 0, 0, tx=optax.sgd(1.0), **bad)
