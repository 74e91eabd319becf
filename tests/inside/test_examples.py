"""Sums over per-example gradients against all gradients, one by one in NumPy."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab import sharding
from optlab.inside import examples

ROLES = optlab.default_roles(stacked=("layers",))


def problem(rows=11, dtype=np.float64):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    params = {"layers": {"kernel": normal(2, 4, 4)}, "head": normal(4)}
    return params, {"x": normal(rows, 4), "y": normal(rows)}


def loss(params, example):
    x = example["x"]
    for i in range(2):
        x = jnp.tanh(x @ params["layers"]["kernel"][i])
    return jnp.square(x @ params["head"] - example["y"])


def all_gradients(params, batch):
    """`{name: (rows, layers, entries)}` and the whole as `(rows, P)`."""
    rows = range(len(batch["y"]))
    gradient = jax.jit(jax.grad(loss))
    found = [gradient(params, {k: v[i] for k, v in batch.items()}) for i in rows]
    kernel = np.stack([np.asarray(g["layers"]["kernel"]).reshape(2, 16) for g in found])
    head = np.stack([np.asarray(g["head"])[None] for g in found])
    whole = np.concatenate([kernel.reshape(len(rows), -1), head[:, 0]], 1)
    return {"layers/kernel": kernel, "head": head, "": whole[:, None]}


def test_coherence_and_noise_are_those_of_all_gradients(x64):
    params, batch = problem()
    every = all_gradients(params, batch)
    m = len(batch["y"])
    for chunk in (4, 11, 100):
        sums = jax.jit(
            lambda p, b, c=chunk: examples.gradient_sums(
                loss, p, b, chunk=c, roles=ROLES
            )[1:]
        )(params, batch)
        sums = examples.GradientSums(m, *sums)
        for part in (sums, sums.whole()):
            coherence, noise = examples.coherence(part), examples.noise_scale(part)
            for name in part.of_mean:
                g = every[name]
                # (layers,): pairs of different examples, for what has no bias.
                products = np.einsum("ilk,jlk->ijl", g, g)
                of_mean = products.mean((0, 1))
                own = np.trace(products).T / m
                apart = (products.sum((0, 1)) - m * own) / (m * (m - 1))
                scale = np.where(apart > 0, (own - apart) / apart, np.inf)
                shape = np.shape(coherence[name])
                alpha = m * of_mean / own
                np.testing.assert_allclose(
                    coherence[name], alpha.reshape(shape), rtol=1e-9
                )
                np.testing.assert_allclose(noise[name], scale.reshape(shape), rtol=1e-8)


def test_coherence_at_its_ends(x64):
    def linear(p, example):
        return p["w"] @ example

    params, m = {"w": jnp.zeros(6)}, 6
    for batch, expected in ((np.eye(m), 1.0), (np.ones((m, m)), m)):
        sums = examples.gradient_sums(linear, params, jnp.asarray(batch))
        np.testing.assert_allclose(examples.coherence(sums)["w"], expected)
        noise = examples.noise_scale(sums)["w"]
        assert (noise > 1e12) if expected == 1 else (noise == 0)
    sums = examples.gradient_sums(linear, params, jnp.zeros((m, m)))
    assert examples.coherence(sums)["w"] == 0


def test_opposing_examples_are_found_and_their_gradients_compared(x64):
    params, batch = problem()
    step = jax.grad(lambda p: loss(p, {k: v[0] for k, v in batch.items()}))(params)
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, step)
    found, change = jax.jit(lambda p, q, b: examples.opposing(loss, p, q, b, count=3))(
        params, after, batch
    )
    rows = [{k: v[i] for k, v in batch.items()} for i in range(len(batch["y"]))]
    moved = np.asarray([loss(after, r) - loss(params, r) for r in rows])
    np.testing.assert_allclose(change, moved, atol=1e-12)
    order = np.argsort(moved)
    np.testing.assert_array_equal(found.fell, order[:3])
    np.testing.assert_array_equal(found.rose, order[::-1][:3])
    g = all_gradients(params, batch)[""][:, 0]
    one, other = g[order[::-1][:3]].mean(0), g[order[:3]].mean(0)
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-9)


def test_a_mesh_gives_the_same_numbers():
    params, batch = problem(16, np.float32)
    params["layers"]["kernel"] = jnp.tile(params["layers"]["kernel"], (4, 1, 1))

    def all_of_it(params, batch):
        sums = examples.gradient_sums(loss, params, batch, chunk=8, roles=ROLES)
        after = jax.tree.map(lambda p: 0.9 * p, params)
        return sums, examples.opposing(loss, params, after, batch, count=2)

    whole = jax.jit(all_of_it)(params, batch)
    mesh = sharding.make_mesh({"data": 8})
    spec = jax.sharding.PartitionSpec
    rules = (("layers", spec("data")), (".*", spec()))
    specs = sharding.param_specs(params, rules)
    cut = jax.device_put(params, sharding.to_shardings(mesh, specs))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    found = jax.jit(all_of_it)(cut, jax.device_put(batch, rows))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *(found, whole),
    )


def test_bad_arguments_are_named():
    params, batch = problem(dtype=np.float32)
    bad = {"x": batch["x"], "y": batch["y"][:3]}
    with pytest.raises(ValueError, match=r"^batch .* \[3, 11\]"):
        examples.gradient_sums(loss, params, bad)
    with pytest.raises(ValueError, match=r"^chunk"):
        examples.example_losses(loss, params, batch, chunk=0)
    with pytest.raises(ValueError, match=r"^count must be at most 5"):
        examples.opposing(loss, params, params, batch, count=6)
    one = examples.GradientSums(1, {}, {})
    with pytest.raises(ValueError, match=r"^sums .* got 1"):
        examples.noise_scale(one)
