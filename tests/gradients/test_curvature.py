"""Curvature estimates against dense Hessians, and their cost."""

import itertools
import json
import pathlib
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.flops import count_flops
from optlab.gradients import curvature

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "adahessian_a.npz"
MAX_RATIO = 3.05  # of the FLOPs of value_and_grad


def mlp(sizes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [
        {
            "w": jnp.asarray(rng.standard_normal((m, n)) / np.sqrt(m), dtype),
            "b": jnp.asarray(np.full(n, 0.1), dtype),
        }
        for m, n in itertools.pairwise(sizes)
    ]


def mlp_loss(params, x, y):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    logits = x @ params[-1]["w"] + params[-1]["b"][None]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=-1))


def batch(rows, width, classes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, width)), dtype)
    labels = np.eye(classes)[rng.integers(classes, size=rows)]
    return x, jnp.asarray(labels, jax.dtypes.canonicalize_dtype(float))


LAYERS, WIDTH, HEADS, TOKENS, WORDS = 2, 32, 4, 16, 50


def transformer(dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-2]), dtype)

    return {
        "embedding": normal(WORDS, WIDTH),
        "head": normal(WIDTH, WORDS),
        "layers": {
            "scale": jnp.asarray(np.ones((LAYERS, WIDTH)), dtype),
            "qkv": normal(LAYERS, WIDTH, 3 * WIDTH),
            "out": normal(LAYERS, WIDTH, WIDTH),
            "up": normal(LAYERS, WIDTH, 2 * WIDTH),
            "down": normal(LAYERS, 2 * WIDTH, WIDTH),
        },
    }


def transformer_layer(x, w):
    h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    h = h * w["scale"][None, None]
    heads = (h @ w["qkv"]).reshape(*x.shape[:2], 3 * HEADS, WIDTH // HEADS)
    q, k, v = jnp.split(heads, 3, axis=2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(WIDTH // HEADS)
    causal = np.tril(np.ones((1, 1, TOKENS, TOKENS), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    mixed = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)
    x = x + mixed @ w["out"]
    return x + jax.nn.silu(x @ w["up"]) @ w["down"], None


def transformer_loss(params, tokens, *, remat=False, scanned=True):
    layer = jax.checkpoint(transformer_layer) if remat else transformer_layer
    x = params["embedding"][tokens]
    if scanned:
        x, _ = jax.lax.scan(layer, x, params["layers"])
    else:
        for i in range(LAYERS):
            weights = jax.tree.map(lambda w, i=i: w[i], params["layers"])
            x, _ = layer(x, weights)
    log_p = jax.nn.log_softmax(x @ params["head"])
    return -jnp.mean(jnp.take_along_axis(log_p, tokens[..., None], axis=-1))


def tokens():
    return jnp.asarray(np.random.default_rng(5).integers(WORDS, size=(4, TOKENS)))


def assert_trees_close(got, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected
    )


def dense_hessian(loss, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return jax.jit(jax.hessian(lambda p: loss(unravel(p))))(flat)


@pytest.mark.parametrize("shape", [(), (1,), (32,), (33,), (7, 45), (2, 3, 64)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probes_are_signs_of_their_leaf(shape, dtype):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    signs = jax.jit(lambda key: curvature.rademacher_like(key, {"a": leaf}))
    z = signs(jax.random.key(0))["a"]
    assert (z.shape, z.dtype) == (shape, dtype)
    np.testing.assert_array_equal(np.abs(np.asarray(z, np.float32)), 1.0)


def test_probes_are_fair_and_independent():
    tree = {"a": jnp.zeros((64, 67)), "b": jnp.zeros((64, 67)), "c": jnp.zeros(40)}
    z = curvature.rademacher_like(jax.random.key(1), tree)
    a, b = np.asarray(z["a"]), np.asarray(z["b"])
    bound = 4 / np.sqrt(a.size)
    for product in (a, b, a * b, a[1:] * a[:-1], a[:, 1:] * a[:, :-1]):
        assert abs(product.mean()) < bound * np.sqrt(a.size / product.size)
    # Every bit of a word is used, and none twice.
    gram = a.T @ a / a.shape[0]
    assert np.max(np.abs(gram - np.eye(67))) < 6 / np.sqrt(a.shape[0])
    again = curvature.rademacher_like(jax.random.key(1), tree)
    np.testing.assert_array_equal(again["a"], a)
    other = curvature.rademacher_like(jax.random.key(2), tree)
    assert not np.array_equal(other["a"], a)


def test_probes_of_an_empty_tree():
    assert curvature.rademacher_like(jax.random.key(0), {}) == {}


@pytest.mark.parametrize("samples", [1, 3])
def test_exact_for_a_diagonal_quadratic(samples):
    diagonal = {"a": jnp.arange(-3.0, 9.0).reshape(3, 4), "b": jnp.float32(2.5)}

    def loss(p):
        terms = jax.tree.map(lambda d, x: 0.5 * jnp.sum(d * x * x), diagonal, p)
        return terms["a"] + terms["b"]

    params = jax.tree.map(jnp.cos, diagonal)
    f = jax.jit(curvature.value_grad_and_hessian_diag(loss, samples=samples))
    value, grads, diag = f(params, jax.random.key(7))
    np.testing.assert_allclose(value, loss(params), rtol=1e-6)
    assert_trees_close(grads, jax.grad(loss)(params), rtol=1e-6)
    assert_trees_close(diag, diagonal, rtol=1e-6)


def test_hvp_equals_the_dense_hessian(x64):
    params = mlp([3, 4, 2], dtype=jnp.float64)
    x, y = batch(9, 3, 2, jnp.float64)
    dense = dense_hessian(lambda p: mlp_loss(p, x, y), params)
    vector, unravel = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda p: jnp.sin(3 * p), params)
    )
    got = jax.jit(partial(curvature.hvp, mlp_loss))(params, unravel(vector), x, y)
    assert_trees_close(got, unravel(dense @ vector), rtol=1e-9, atol=1e-12)


def test_unbiased(x64):
    """Hutchinson's variance is the squared off-diagonal row; five standard errors."""
    params = mlp([3, 4, 2], dtype=jnp.float64)
    args = batch(9, 3, 2, jnp.float64)
    hessian = dense_hessian(lambda p: mlp_loss(p, *args), params)
    off_diagonal = hessian - jnp.diag(jnp.diag(hessian))
    n = 4096
    bound = 5 * jnp.sqrt(jnp.sum(off_diagonal**2, axis=1) / n) + 1e-12
    many = curvature.value_grad_and_hessian_diag(mlp_loss, samples=n)
    one = curvature.value_grad_and_hessian_diag(mlp_loss)
    by_scan = jax.jit(many)(params, jax.random.key(0), *args)[2]
    by_seed = jax.jit(jax.vmap(lambda key: one(params, key, *args)[2]))(
        jax.random.split(jax.random.key(1), n)
    )
    means = [by_scan, jax.tree.map(lambda d: d.mean(axis=0), by_seed)]
    for mean in means:
        estimate = jax.flatten_util.ravel_pytree(mean)[0]
        error = np.abs(estimate - jnp.diag(hessian))
        assert np.all(error < bound)
        # The bound is tight enough to tell the diagonal from nothing.
        assert np.linalg.norm(error) < 0.1 * np.linalg.norm(jnp.diag(hessian))


def test_signed():
    f = jax.jit(curvature.value_grad_and_hessian_diag(lambda p: -jnp.sum(p**2)))
    np.testing.assert_allclose(f(jnp.ones(3), jax.random.key(0))[2], -2.0)


@pytest.mark.parametrize("samples", [1, 2])
def test_has_aux(samples):
    params, args = mlp([3, 4, 2]), batch(9, 3, 2)

    def loss_and_aux(p, x, y):
        return mlp_loss(p, x, y), {"step": jnp.int32(3), "first": p[0]["b"]}

    plain = curvature.value_grad_and_hessian_diag(mlp_loss, samples=samples)
    with_aux = curvature.value_grad_and_hessian_diag(
        loss_and_aux, has_aux=True, samples=samples
    )
    both = jax.jit(lambda *given: (with_aux(*given), plain(*given)))
    ((value, aux), *more), expected = both(params, jax.random.key(0), *args)
    assert aux["step"] == 3
    np.testing.assert_array_equal(aux["first"], params[0]["b"])
    assert_trees_close((value, *more), expected, rtol=1e-6)


def test_scan_and_remat_change_nothing(x64):
    """Against separate passes over the layers written out."""
    params = transformer(jnp.float64)
    flat_loss = partial(transformer_loss, scanned=False)
    key, ids = jax.random.key(3), tokens()

    @jax.jit
    def separate(key):
        value, grads = jax.value_and_grad(flat_loss)(params, ids)
        z = curvature.rademacher_like(key, params)
        hz = curvature.hvp(flat_loss, params, z, ids)
        return value, grads, jax.tree.map(jnp.multiply, z, hz)

    for remat, samples in [(False, 1), (True, 1), (True, 2)]:
        loss = partial(transformer_loss, remat=remat)
        f = curvature.value_grad_and_hessian_diag(loss, samples=samples)
        got = jax.jit(f)(params, key, ids)
        each = [separate(k) for k in (jax.random.split(key) if samples > 1 else [key])]
        expected = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *each)
        assert_trees_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2])
def test_bf16_parameters(samples):
    params = mlp([8, 16, 4])
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    same = jax.tree.map(lambda p: p.astype(jnp.float32), low)
    x, y = batch(64, 8, 4)
    f = jax.jit(curvature.value_grad_and_hessian_diag(mlp_loss, samples=samples))
    _, grads, diag = f(low, jax.random.key(0), x.astype(jnp.bfloat16), y)
    expected = f(same, jax.random.key(0), x, y)[2]
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(grads))
    assert all(d.dtype == jnp.float32 for d in jax.tree.leaves(diag))
    got, want = (jax.flatten_util.ravel_pytree(t)[0] for t in (diag, expected))
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_float64_parameters_give_a_float64_diagonal(x64):
    f = jax.jit(curvature.value_grad_and_hessian_diag(lambda p: jnp.sum(p**4)))
    diag = f(jnp.ones(3, jnp.float64), jax.random.key(0))[2]
    assert diag.dtype == jnp.float64


def test_eight_devices_equal_one():
    """Under jit by sharding, and by pmean in shard_map and pmap."""
    params, (x, y), key = mlp([6, 8, 4]), batch(32, 6, 4), jax.random.key(0)
    f = curvature.value_grad_and_hessian_diag(mlp_loss, samples=2)
    expected = jax.jit(f)(params, key, x, y)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    rows = NamedSharding(mesh, P("data"))
    sharded = jax.jit(f)(params, key, *jax.device_put((x, y), rows))
    columns = {"w": NamedSharding(mesh, P(None, "data")), "b": rows}
    split = jax.device_put(params[0], columns)
    split_params = jax.jit(f)([split, params[1]], key, x, y)

    def body(params, key, x, y):
        params = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.pmean(f(params, key, x, y), "data")

    by_shard_map = jax.jit(
        jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(P(), P(), P("data"), P("data")),
            out_specs=P(),
        )
    )(params, key, x, y)
    by_pmap = jax.pmap(
        lambda x, y: jax.lax.pmean(f(params, key, x, y), "data"), axis_name="data"
    )(x.reshape(8, 4, 6), y.reshape(8, 4, 4))
    by_pmap = jax.tree.map(lambda leaf: leaf[0], by_pmap)
    for got in (sharded, split_params, by_shard_map, by_pmap):
        assert_trees_close(got, expected, rtol=1e-4, atol=1e-6)


def test_per_device_keys_average_eight_probes():
    """Each device's own probe on the same batch: the mean over samples by hand."""
    params, args = mlp([6, 8, 4]), batch(8, 6, 4)
    f = curvature.value_grad_and_periodic_hessian_diag(mlp_loss, 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(4), 8)

    def body(params, keys, count):
        params = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.pmean(f(params, keys[0], count, *args), "data")

    got = jax.jit(
        jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
    )(params, keys, jnp.int32(4))
    each = jax.jit(jax.vmap(lambda key: f(params, key, 4, *args)))(keys)
    expected = jax.tree.map(lambda leaf: leaf.mean(axis=0), each)
    assert_trees_close(got, expected, rtol=1e-4, atol=1e-6)


def test_hessian_steps():
    fresh = [bool(curvature.is_hessian_step(count, 3)) for count in range(7)]
    assert fresh == [True, False, False, True, False, False, True]
    assert all(curvature.is_hessian_step(count, 1) for count in range(3))
    traced = jax.jit(lambda count: curvature.is_hessian_step(count, 3))(jnp.int32(6))
    assert traced.dtype == bool
    assert traced


@pytest.mark.parametrize("has_aux", [False, True])
def test_periodic_is_full_then_zero_in_one_program(has_aux):
    params, args = mlp([3, 4, 2]), batch(9, 3, 2)
    traces = []

    def loss(p, x, y):
        traces.append(None)
        value = mlp_loss(p, x, y)
        return (value, jnp.sum(x)) if has_aux else value

    periodic = jax.jit(
        curvature.value_grad_and_periodic_hessian_diag(loss, 3, has_aux=has_aux)
    )
    full = curvature.value_grad_and_hessian_diag(loss, has_aux=has_aux)
    key = jax.random.key(0)
    expected = jax.jit(full)(params, key, *args)
    zeros = jax.tree.map(jnp.zeros_like, expected[2])
    for count in range(5):
        got = periodic(params, key, jnp.int32(count), *args)
        assert_trees_close(got[:2], expected[:2], rtol=1e-6)
        diag = expected[2] if count in (0, 3) else zeros
        assert_trees_close(got[2], diag, rtol=1e-5, atol=1e-7)
        if count == 0:
            traced = len(traces)
    assert len(traces) == traced
    text = periodic.lower(params, key, jnp.int32(0), *args).as_text()
    assert "stablehlo.case" in text


def test_periodic_with_interval_1_has_no_branch():
    f = curvature.value_grad_and_periodic_hessian_diag(mlp_loss, 1)
    args = mlp([3, 4, 2]), jax.random.key(0), jnp.int32(5), *batch(9, 3, 2)
    assert "stablehlo.case" not in jax.jit(f).lower(*args).as_text()


def test_flops_of_an_mlp_compiled():
    params, args = mlp([32, 64, 64, 10]), batch(64, 32, 10)
    full = curvature.value_grad_and_hessian_diag(mlp_loss)
    key = jax.random.key(0)

    def compiled(fn, *args):
        return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

    plain = compiled(jax.value_and_grad(mlp_loss), params, *args)
    assert compiled(full, params, key, *args) <= MAX_RATIO * plain
    counted = count_flops(jax.value_and_grad(mlp_loss), params, *args).total
    assert count_flops(full, params, key, *args).total <= MAX_RATIO * counted


@pytest.mark.parametrize("remat", [False, True])
def test_flops_of_a_scanned_transformer(remat):
    loss = partial(transformer_loss, remat=remat)
    params, key = transformer(), jax.random.key(0)
    plain = count_flops(jax.value_and_grad(loss), params, tokens())

    def ratio(samples):
        f = curvature.value_grad_and_hessian_diag(loss, samples=samples)
        return count_flops(f, params, key, tokens()).total / plain.total

    assert ratio(1) <= MAX_RATIO
    # Each further probe costs 2, and under remat the forward pass once more.
    assert ratio(4) <= 1 + 4 * (2.6 if remat else 2.05)


def test_the_authors_trajectory(x64):
    """AdaHessian written out in NumPy, on our loss, gradient and z * Hz."""
    with np.load(GOLDEN) as data:
        golden = dict(data)
    meta = json.loads(str(golden["__meta__"]))
    names = ("w1", "b1", "w2", "b2")
    x = jnp.asarray(golden["data/x"])
    labels = jax.nn.one_hot(golden["data/y"], 4, dtype=jnp.float64)

    def loss(p):
        layers = [{"w": p["w1"], "b": p["b1"]}, {"w": p["w2"], "b": p["b2"]}]
        logits = jnp.tanh(x @ layers[0]["w"] + layers[0]["b"][None])
        logits = logits @ layers[1]["w"] + layers[1]["b"][None]
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    product = jax.jit(partial(curvature.hvp, loss))
    params = {name: jnp.asarray(golden[f"init/{name}"]) for name in names}
    m, v = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    b1, b2 = meta["b1"], meta["b2"]
    for t in range(1, len(golden["loss"]) + 1):
        value, grads = value_and_grad(params)
        z = {n: jnp.asarray(golden[f"rademacher/{n}"][t - 1]) for n in names}
        hz = product(params, z)
        assert value == pytest.approx(golden["loss"][t - 1], abs=1e-9)
        for name in names:
            d = np.abs(z[name] * hz[name])
            if d.ndim == 2:
                d = np.broadcast_to(d.mean(axis=0, keepdims=True), d.shape)
            m[name] = b1 * m[name] + (1 - b1) * grads[name]
            v[name] = b2 * v[name] + (1 - b2) * d**2
            curved = np.sqrt(v[name] / (1 - b2**t)) ** meta["hessian_power"]
            step = m[name] / (1 - b1**t) / (curved + meta["eps"])
            step = step + meta["weight_decay"] * params[name]
            params[name] = params[name] - meta["learning_rate"] * step
            np.testing.assert_allclose(
                params[name], golden[f"params/{name}"][t - 1], rtol=0, atol=1e-9
            )


def test_bad_arguments_are_named():
    for bad in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match=r"^samples"):
            curvature.value_grad_and_hessian_diag(mlp_loss, samples=bad)
        with pytest.raises(ValueError, match=r"^interval"):
            curvature.is_hessian_step(0, bad)
        with pytest.raises(ValueError, match=r"^interval"):
            curvature.value_grad_and_periodic_hessian_diag(mlp_loss, bad)
