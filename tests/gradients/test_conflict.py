"""Conflicting gradients against NumPy and a brute-force quadratic program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab import sharding


def trees(vectors):
    """The same vectors as trees of two leaves."""
    return [
        {"a": jnp.asarray(v[:4]).reshape(2, 2), "b": jnp.asarray(v[4:])}
        for v in vectors
    ]


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]).ravel(), np.asarray(tree["b"])])


def shortest(vectors):
    """The least norm in the hull: the best of all faces' own minima that lie in it."""
    gram, n, best = vectors @ vectors.T, len(vectors), np.inf
    for size in range(1, n + 1):
        for face in map(list, itertools.combinations(range(n), size)):
            system = np.block(
                [[gram[np.ix_(face, face)], np.ones((size, 1))], [np.ones(size), 0]]
            )
            found = np.linalg.lstsq(system, np.eye(size + 1)[-1], rcond=None)[0][:-1]
            if (found >= -1e-12).all() and np.isclose(found.sum(), 1):
                best = min(best, np.linalg.norm(found @ vectors[face]))
    return best


def test_the_shortest_point_is_that_of_the_quadratic_program(x64):
    rng = np.random.default_rng(0)
    # Random, far from zero, one within another's reach, the same twice, zero in it.
    cases = [
        rng.standard_normal((2, 7)),
        np.outer([1.0, 3.0], np.ones(7)),
        np.ones((2, 7)),
        *(rng.standard_normal((4, 7)) + shift for shift in (0, 0.5, 3)),
        np.concatenate([np.eye(7)[:2], -np.eye(7)[:2]]),
    ]
    solvers = {n: jax.jit(optlab.conflict.min_norm) for n in (2, 4)}
    for vectors in cases:
        found = solvers[len(vectors)](trees(vectors))
        weights = np.asarray(found.weights)
        assert (weights >= 0).all() and np.isclose(weights.sum(), 1)
        np.testing.assert_allclose(flat(found.point), weights @ vectors, atol=1e-12)
        norm = np.linalg.norm(flat(found.point))
        np.testing.assert_allclose(norm, shortest(vectors), atol=1e-7)
        # A descent direction of every loss.
        assert (vectors @ flat(found.point) >= norm**2 - 1e-6).all()


def test_realigned_gradients_do_not_conflict(x64):
    rng = np.random.default_rng(0)
    g1, g2 = rng.standard_normal((2, 7))
    g2 = g2 - 2 * (g1 @ g2 > 0) * g2
    made = [flat(x) for x in optlab.conflict.realign(trees([g1, g2]))]
    inner = g1 @ g2
    np.testing.assert_allclose(made[0], g1 - inner / (g2 @ g2) * g2)
    np.testing.assert_allclose(made[1], g2 - inner / (g1 @ g1) * g1)
    assert abs(made[0] @ g2) < 1e-12 and (made[0] + made[1]) @ g1 > 0
    cosine = optlab.conflict.cosine(*trees([g1, g2]))
    np.testing.assert_allclose(
        cosine, inner / np.linalg.norm(g1) / np.linalg.norm(g2), rtol=1e-12
    )
    # Nothing changes where nothing conflicts, and a zero gradient is no conflict.
    for others in ((g1, -g2), (g1, np.zeros(7))):
        kept = optlab.conflict.realign(trees(others))
        for tree, before in zip(kept, others, strict=True):
            np.testing.assert_array_equal(flat(tree), before)
    assert optlab.conflict.cosine(*trees([g1, np.zeros(7)])) == 0


def test_a_mesh_gives_the_same_numbers():
    rng = np.random.default_rng(0)
    grads = [{"w": jnp.asarray(rng.standard_normal((16, 8)), "float32")} for _ in "abc"]

    def all_of_it(grads):
        return optlab.conflict.realign(grads), optlab.conflict.min_norm(grads)

    mesh = sharding.make_mesh({"data": 8})
    specs = sharding.param_specs(grads, sharding.fsdp_rules(mesh))
    cut = jax.device_put(grads, sharding.to_shardings(mesh, specs))
    run = jax.jit(all_of_it)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(run(cut), run(grads)),
    )


def test_one_gradient_is_too_few():
    for f in (optlab.conflict.realign, optlab.conflict.min_norm):
        with pytest.raises(ValueError, match=r"^grads .* got 1"):
            f([{"w": jnp.ones(2)}])
