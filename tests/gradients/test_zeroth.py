"""Gradients without back-propagation: their mean, their angle, their masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import sharding
from optlab.gradients import zeroth


def quadratic(width=16):
    rng = np.random.default_rng(0)
    half = rng.standard_normal((width, width)) / np.sqrt(width)
    matrix = jnp.asarray(half @ half.T + np.eye(width))

    def loss(p, scale=1.0):
        x = jnp.concatenate([p["a"].ravel(), p["b"]])
        return scale * x @ matrix @ x / 2

    a = jnp.asarray(rng.standard_normal((2, width // 4)))
    b = jnp.asarray(rng.standard_normal(width - a.size))
    return loss, {"a": a, "b": b}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"]).ravel(), np.asarray(tree["b"])])


MAKERS = {
    "two_sided": optlab.zo_value_and_grad,
    "one_sided": lambda f, **k: optlab.zo_value_and_grad(
        f, mu=1e-6, two_sided=False, **k
    ),
    "forward": optlab.forward_value_and_grad,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_mean_is_the_gradient_and_the_angle_is_as_theory_has_it(kind, x64):
    loss, params = quadratic()
    exact = flat(jax.grad(loss)(params))
    value, samples, size = float(loss(params)), 4, len(exact)
    many = jax.jit(jax.vmap(MAKERS[kind](loss, samples=samples), (None, 0)))
    keys = jax.random.split(jax.random.key(0), 5_000)
    values, grads = many(params, keys)
    found = np.concatenate(
        [np.asarray(g).reshape(len(keys), -1) for g in (grads["a"], grads["b"])], 1
    )
    error = np.linalg.norm(found.mean(0) - exact) / np.linalg.norm(exact)
    # E|g|^2 is about (P + 1 + samples) / samples |grad|^2.
    expected = np.sqrt((size + 1 + samples) / samples / len(keys))
    assert error < 2 * expected
    cosines = found @ exact / np.linalg.norm(found, axis=1) / np.linalg.norm(exact)
    about = np.sqrt(samples / (size + samples + 1))  # sqrt(samples / size) of many
    np.testing.assert_allclose(cosines.mean(), about, rtol=0.02)
    np.testing.assert_allclose(np.mean(values), value, rtol=1e-5)
    # One sample is the slope along its own direction, times that.
    first = flat(jax.jit(MAKERS[kind](loss))(params, keys[0])[1])
    u = flat(zeroth._direction(keys[0], params, None))
    np.testing.assert_allclose(first, (u @ exact) * u, rtol=1e-4)


@pytest.mark.parametrize("kind", MAKERS)
def test_masks_and_arguments_and_aux(kind, x64):
    loss, params = quadratic()
    key = jax.random.key(1)

    def with_aux(p, scale):
        return loss(p, scale), {"seen": p["b"][0]}

    f = MAKERS[kind](with_aux, has_aux=True, samples=2)
    (value, aux), grads = f(params, key, 3.0, mask={"a": True, "b": False})
    assert (flat(grads)[8:] == 0).all() and (flat(grads)[:8] != 0).all()
    np.testing.assert_allclose(aux["seen"], params["b"][0])
    np.testing.assert_allclose(value, 3 * loss(params), rtol=1e-4)
    every = jnp.arange(8) % 2
    _, grads = f(params, key, 1.0, mask={"a": False, "b": every})
    assert ((flat(grads) != 0) == [*[False] * 8, *(every == 1)]).all()


def test_no_activations_are_kept():
    """A fifth of back-propagation's temporary bytes, 16 layers deep."""
    params = {"layers": jnp.ones((16, 32, 32)) / 32}

    def loss(p, x):
        return jnp.sum(
            jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, p["layers"])[0]
        )

    def temporary(f, *args):
        compiled = jax.jit(f).lower(params, *args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    x = jnp.ones((2048, 32))
    exact = temporary(jax.value_and_grad(loss), x)
    for make in (optlab.zo_value_and_grad, optlab.forward_value_and_grad):
        assert temporary(make(loss), jax.random.key(0), x) < exact / 5


def test_blocks_take_turns():
    shapes = {"a": 5, "b": 5, "c": 90, "d": 10, "e": 10}
    params = {name: jax.ShapeDtypeStruct((n,), "float32") for name, n in shapes.items()}
    for blocks in range(1, 6):
        masks = [
            jax.tree.map(bool, optlab.blocks_in_turn(params, blocks, i))
            for i in range(blocks)
        ]
        assert all(any(mask.values()) for mask in masks)
        assert all(sum(m[name] for m in masks) == 1 for name in params)
        assert optlab.blocks_in_turn(params, blocks, blocks) == masks[0]
    two = jax.jit(lambda i: optlab.blocks_in_turn(params, 2, i))(jnp.int32(3))
    assert [name for name in params if two[name]] == ["d", "e"]
    with pytest.raises(ValueError, match=r"^blocks must be at most 5 leaves, got 6"):
        optlab.blocks_in_turn(params, 6, 0)


def test_training_goes_down_behind_any_optimizer_and_conservatively(x64):
    loss, params = quadratic()
    f = optlab.zo_value_and_grad(loss, samples=4)
    for tx, careful in ((optlab.lion(1e-2), False), (optax.sgd(0.05), True)):

        def step(carry, key, tx=tx, careful=careful):
            params, state = carry
            value, grads = f(params, key)
            updates, state = tx.update(grads, state, params)
            if careful:
                params, _ = optlab.keep_if_better(loss, params, updates)
            else:
                params = optax.apply_updates(params, updates)
            return (params, state), value

        keys = jax.random.split(jax.random.key(0), 300)
        _, values = jax.lax.scan(step, (params, tx.init(params)), keys)
        assert values[-1] < 0.05 * values[0]
    worse = jax.tree.map(jnp.asarray, params)
    kept, made = optlab.keep_if_better(loss, params, worse)
    assert not made and (flat(kept) == flat(params)).all()
    kept, made = optlab.keep_if_better(loss, params, jax.tree.map(jnp.negative, worse))
    assert made and (flat(kept) == 0).all()


def test_a_mesh_gives_the_same_numbers():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((16, 8)), "float32")}
    x = jnp.asarray(rng.standard_normal((32, 8)), "float32")

    def loss(p, x):
        return jnp.mean(jnp.square(jnp.tanh(x @ p["w"].T)))

    def all_of_it(params, x):
        key = jax.random.key(0)
        zo = optlab.zo_value_and_grad(loss, mu=1e-2, samples=2)(params, key, x)
        return zo, optlab.forward_value_and_grad(loss)(params, key, x)

    mesh = sharding.make_mesh({"data": 8})
    specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
    cut = jax.device_put(params, sharding.to_shardings(mesh, specs))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(all_of_it)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        *(run(cut, jax.device_put(x, rows)), run(params, x)),
    )


def test_bad_arguments_are_named():
    for bad in ({"mu": 0.0}, {"mu": -1.0}, {"samples": 0}, {"samples": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optlab.zo_value_and_grad(jnp.sum, **bad)
    with pytest.raises(ValueError, match="samples"):
        optlab.forward_value_and_grad(jnp.sum, samples=0)
