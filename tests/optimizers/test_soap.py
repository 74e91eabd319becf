"""SOAP against the authors' recorded trajectory and a plain NumPy one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.matrices.linalg import eigenbasis, refresh_eigenbasis
from tests.golden import follow, load


def reference(gradients, bases, *, b1, b2, eps, interval, sides=(True, True)):
    """The authors' loop on one matrix: directions from the second call on.

    The momentum lives in the bases and is carried over at each refresh, as there;
    `bases` are those of the first call, arbitrary where `L` or `R` are singular.
    """
    first, *rest = gradients
    left, right = (1 - b2) * first @ first.T, (1 - b2) * first.T @ first
    q_left, q_right = bases
    m, v = np.zeros_like(first), np.zeros_like(first)
    for t, g in enumerate(rest, 1):
        projected = q_left.T @ g @ q_right
        m = b1 * m + (1 - b1) * projected
        v = b2 * v + (1 - b2) * projected**2
        size = np.sqrt(1 - b2**t) / (1 - b1**t)
        yield size * q_left @ (m / (np.sqrt(v) + eps)) @ q_right.T
        left = b2 * left + (1 - b2) * g @ g.T
        right = b2 * right + (1 - b2) * g.T @ g
        if t % interval == 0:
            m = q_left @ m @ q_right.T
            if sides[0]:
                order = np.argsort(-np.diag(q_left.T @ left @ q_left), kind="stable")
                v, q_left = v[order], q_left[:, order]
                q_left = np.linalg.qr(left @ q_left)[0]
            if sides[1]:
                order = np.argsort(-np.diag(q_right.T @ right @ q_right), kind="stable")
                v, q_right = v[:, order], q_right[:, order]
                q_right = np.linalg.qr(right @ q_right)[0]
            m = q_left.T @ m @ q_right


def descending_eigenvectors(x):
    return np.linalg.eigh(x)[1][:, ::-1]


def run(tx, gradients):
    """Directions of the calls, and the state after the first."""
    update = jax.jit(tx.update)
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:], g.dtype), gradients)
    state, directions, first = tx.init(params), [], None
    for step in range(len(jax.tree.leaves(gradients)[0])):
        grads = jax.tree.map(lambda g, i=step: jnp.asarray(g[i]), gradients)
        updates, state = update(grads, state, params)
        directions.append(updates)
        first = state if first is None else first
    return directions, first


def test_follows_the_authors_code_in_float64(x64):
    data = load("soap_a")
    arguments = ("learning_rate", "b1", "b2", "eps", "precondition_interval")
    tx = optlab.soap(**{k: data.meta[k] for k in arguments})
    assert follow(tx, data) < 1e-7


def test_follows_the_authors_code_in_float32():
    data = load("soap_a")
    tx = optlab.soap(data.meta["learning_rate"], precondition_interval=3)
    assert follow(tx, data) < 1e-3


def test_the_plain_loop_follows_the_authors_code_too():
    """So that what equals it at other intervals equals the authors'."""
    data = load("soap_a")
    gradients, rate = data.grads["w"], data.meta["learning_rate"]
    first = gradients[0]
    bases = [descending_eigenvectors(x) for x in (first @ first.T, first.T @ first)]
    arguments = {name: data.meta[name] for name in ("b1", "b2", "eps")}
    interval = data.meta["precondition_interval"]
    steps = reference(gradients, bases, interval=interval, **arguments)
    w = [data.init["w"], *(-rate * direction for direction in steps)]
    np.testing.assert_allclose(np.cumsum(w, 0), data.params["w"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("interval", [1, 10])
def test_equals_the_plain_loop_at_every_interval(interval, x64):
    gradients = np.random.default_rng(0).standard_normal((24, 6, 6))
    arguments = dict(b1=0.9, b2=0.95, eps=1e-8)
    tx = optlab.scale_by_soap(**arguments, precondition_interval=interval)
    directions, _ = run(tx, {"w": gradients})
    first = gradients[0]
    bases = [descending_eigenvectors(x) for x in (first @ first.T, first.T @ first)]
    expected = reference(gradients, bases, interval=interval, **arguments)
    assert not np.any(directions[0]["w"])
    for ours, theirs in zip(directions[1:], expected, strict=True):
        np.testing.assert_allclose(ours["w"], theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
@pytest.mark.parametrize(
    ("kwargs", "long_side"),
    [({}, True), ({"one_sided": True}, False), ({"max_dim": 5}, False)],
)
def test_rectangular_matrices_with_two_bases_and_with_one(
    shape, kwargs, long_side, x64
):
    gradients = np.random.default_rng(1).standard_normal((8, *shape))
    sides = (True, long_side) if shape[0] < shape[1] else (long_side, True)
    tx = optlab.scale_by_soap(precondition_interval=2, **kwargs)
    directions, state = run(tx, {"w": gradients})
    bases = [
        np.asarray(basis["w"]) if active else np.eye(size)
        for basis, active, size in zip(
            (state.basis_left, state.basis_right), sides, shape, strict=True
        )
    ]
    for basis in bases:
        np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-12)
    expected = reference(
        *(gradients, bases), b1=0.95, b2=0.95, eps=1e-8, interval=2, sides=sides
    )
    for ours, theirs in zip(directions[1:], expected, strict=True):
        np.testing.assert_allclose(ours["w"], theirs, rtol=0, atol=1e-8)
    factors = sum(f["w"].size for f in state[3:])
    assert factors == 2 * sum(
        d * d if a else 1 for d, a in zip(shape, sides, strict=True)
    )


def test_stacked_matrices_equal_separate_ones(x64):
    gradients = np.random.default_rng(2).standard_normal((7, 3, 5, 5))
    stacked, _ = run(
        optlab.scale_by_soap(
            precondition_interval=2, roles=optlab.default_roles(stacked=("layers",))
        ),
        {"layers": {"w": gradients}},
    )
    apart, _ = run(
        optlab.scale_by_soap(precondition_interval=2),
        {f"w{i}": gradients[:, i] for i in range(3)},
    )
    for one, three in zip(stacked, apart, strict=True):
        expected = np.stack([three[f"w{i}"] for i in range(3)])
        np.testing.assert_allclose(one["layers"]["w"], expected, rtol=0, atol=1e-10)


def test_the_first_call_changes_nothing_and_the_vectors_skip_it_too(x64):
    rng = np.random.default_rng(3)
    gradients = {
        "w": rng.standard_normal((4, 3, 5)),
        "bias": rng.standard_normal((4, 5)),
    }
    params = {"w": jnp.ones((3, 5)), "bias": jnp.ones(5)}
    tx = optlab.soap(lambda count: 0.01 * (count + 1), weight_decay=0.1)
    adam = optax.adam(1.0, 0.95, 0.95)
    update, state = jax.jit(tx.update), tx.init(params)
    adam_state = adam.init(params["bias"])
    for step in range(4):
        grads = jax.tree.map(lambda g, i=step: jnp.asarray(g[i]), gradients)
        updates, state = update(grads, state, params)
        if step == 0:
            assert not any(np.any(u) for u in jax.tree.leaves(updates))
            continue
        # The rate counts calls, the moments only what they have seen.
        expected, adam_state = adam.update(grads["bias"], adam_state)
        expected = 0.01 * (step + 1) * (expected - 0.1 * params["bias"])
        np.testing.assert_allclose(updates["bias"], expected, rtol=1e-12)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e20])
def test_singular_gradients_of_any_size_keep_orthonormal_bases(scale):
    rng = np.random.default_rng(4)
    rank_one = rng.standard_normal((6, 1)) @ rng.standard_normal((1, 4))
    gradients = np.stack([rank_one * scale] * 4 + [rng.standard_normal((6, 4))])
    tx = optlab.scale_by_soap(precondition_interval=1)
    params = {"w": jnp.zeros((6, 4))}
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state)
        assert np.isfinite(updates["w"]).all()
        for basis in (state.basis_left["w"], state.basis_right["w"]):
            eye = np.eye(basis.shape[-1])
            np.testing.assert_allclose(basis.T @ basis, eye, atol=1e-5)
    assert np.abs(updates["w"]).max() > 0


def test_the_eigenbasis_refresh_sorts_and_converges(x64):
    rng = np.random.default_rng(5)
    vectors = np.linalg.qr(rng.standard_normal((2, 5, 5)))[0]
    values = np.array([7.0, 4.0, 2.0, 1.0, 0.5])
    gram = jnp.asarray((vectors * values) @ vectors.mT)
    np.testing.assert_allclose(
        np.abs(eigenbasis(gram).mT @ vectors),
        np.broadcast_to(np.eye(5), (2, 5, 5)),
        atol=1e-10,
    )
    shuffled = jnp.asarray(vectors[:, :, [2, 0, 4, 1, 3]])
    basis, order = refresh_eigenbasis(gram, shuffled)
    np.testing.assert_array_equal(order, [[1, 3, 0, 4, 2]] * 2)
    np.testing.assert_allclose(
        np.abs(basis.mT @ vectors), np.broadcast_to(np.eye(5), (2, 5, 5)), atol=1e-10
    )
    basis, _ = refresh_eigenbasis(jnp.zeros((2, 5, 5)), shuffled)
    np.testing.assert_allclose(
        basis.mT @ basis, np.broadcast_to(np.eye(5), (2, 5, 5)), atol=1e-12
    )


@pytest.mark.parametrize(
    "kwargs", [{"precondition_interval": 0}, {"max_dim": 0}, {"weight_decay": -1.0}]
)
def test_an_argument_out_of_range_is_named(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        optlab.soap(1e-2, **kwargs)


def test_the_null_space_does_not_hang_on_rounding(x64):
    """So that a step gives the same numbers however its products were laid out."""
    rng = np.random.default_rng(6)
    g = rng.standard_normal((2, 4, 9))
    gram = jnp.asarray(g.mT @ g)
    noise = 1e-15 * rng.standard_normal((2, 9, 9))
    basis = eigenbasis(gram, 4)
    other = eigenbasis(gram + noise + noise.mT, 4)
    eye = np.broadcast_to(np.eye(9), (2, 9, 9))
    np.testing.assert_allclose(np.abs(basis.mT @ other), eye, atol=1e-12)
    np.testing.assert_allclose(basis.mT @ basis, eye, atol=1e-12)
    leading = np.linalg.eigh(gram)[1][..., ::-1][..., :4]
    np.testing.assert_allclose(
        np.abs(basis[..., :4].mT @ leading), eye[:, :4, :4], atol=1e-12
    )
