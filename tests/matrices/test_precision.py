"""Every product has the precision that the policy says, and directions bear it."""

import argparse
import functools
import inspect
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.matrices import precision
from optlab.matrices.orthogonalize import orthogonalize
from optlab.state import state_leaves

PARAMS = {"w": jnp.ones((24, 40)), "bias": jnp.zeros(5), "embedding": jnp.ones((9, 8))}
MATRIX_METHODS = ("cosmos", "lanton", "muon", "root", "scion", "soap")
# What a product is for, as it stands in a lowered program.
FORMS = {
    "cpu": dict.fromkeys(("iteration", "rotation", "basis", "exact"), "f32 HIGHEST"),
    "rocm": dict.fromkeys(("rotation", "basis", "exact"), "f32 HIGHEST")
    | {"iteration": "bf16 DEFAULT"},
    "cuda": {
        "iteration": "bf16 DEFAULT",
        "rotation": "f32 bf16x1",
        "basis": "f32 bf16x3",
        "exact": "f32 HIGHEST",
    },
    "tpu": {
        "iteration": "bf16 DEFAULT",
        "rotation": "f32 DEFAULT",
        "basis": "f32 HIGH",
        "exact": "f32 HIGHEST",
    },
}
# Products of one matrix by what they are for; iterations are the others.
PRODUCTS = {
    "cosmos": {"rotation": 1, "basis": 12, "exact": 1},
    "soap": {"rotation": 6, "basis": 0, "exact": 4},
}


def traced(tx, params=PARAMS, needs=()):
    """A step, to be lowered."""
    state = jax.eval_shape(tx.init, params)

    def step(grads, state, params):
        return tx.update(grads, state, params, **dict.fromkeys(needs, grads))

    return jax.jit(step).trace(params, state, params)


def products(traced, platform):
    """The products of a program by form, as it is lowered for a platform."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = Counter()
    for line in text.splitlines():
        if "dot_general" in line:
            kind = re.search(r": \(tensor<[\dx]*(\w+)>", line)[1]
            passes = re.search(r"lhs_precision_type = (\w+).*operations = (\d)", line)
            named = re.search(r"precision = \[(\w+)", line)
            how = "x".join(passes.groups()) if passes else (named or ["", "DEFAULT"])[1]
            found[f"{kind} {how}"] += 1
    return found


@pytest.mark.parametrize("name", optlab.registry.names())
def test_every_product_has_the_precision_of_its_purpose(name):
    entry = optlab.registry.get(name)
    program = traced(entry.factory(1e-3), needs=entry.needs)
    method = name.removesuffix("_h").replace("normuon", "muon")
    iterates = method in MATRIX_METHODS and method != "soap"
    for platform, forms in FORMS.items():
        found, expected = products(program, platform), Counter()
        for purpose, count in PRODUCTS.get(method, {}).items():
            expected[forms[purpose]] += count
        assert expected <= found, platform
        left = {forms["iteration"]} if iterates else set()
        assert set(found - expected) == left, platform


@pytest.mark.parametrize("name", MATRIX_METHODS)
def test_float64_stays_float64(x64, name):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    program = traced(optlab.registry.get(name).factory(1e-3), params)
    for platform in FORMS:
        assert set(products(program, platform)) == {"f64 HIGHEST"}, platform


def test_arguments_overrule_the_policy():
    tx = optlab.cosmos(1e-3, ns_dtype="float32", basis_precision="highest")
    assert set(products(traced(tx), "tpu")) == {"f32 HIGHEST"}
    found = products(traced(optlab.cosmos(1e-3, basis_precision="high")), "cuda")
    assert set(found) == {"bf16 DEFAULT", "f32 HIGH", "f32 HIGHEST"}
    assert found["f32 HIGH"] == 13 and found["f32 HIGHEST"] == 1
    found = products(traced(optlab.soap(1e-3, basis_precision="highest")), "tpu")
    assert found == {"f32 HIGHEST": 10}
    for make in (optlab.cosmos, optlab.soap):
        with pytest.raises(ValueError, match="basis_precision must be one of default"):
            make(1e-3, basis_precision="bf16")


def test_an_explicit_precision_leaves_iterations_in_float32():
    x = jnp.ones((4, 6))
    for given in ({"dtype": "float32"}, {"precision": "high"}):
        step = jax.jit(lambda x, given=given: orthogonalize(x, **given))
        text = step.trace(x).lower(lowering_platforms=("tpu",)).as_text()
        assert "bf16" not in text


@pytest.mark.parametrize(
    ("backend", "kind", "passes", "error"),
    [
        ("tpu", "rotation", None, 2**-8),
        ("tpu", "basis", None, 2**-16),
        ("cuda", "rotation", None, 2**-8),
        ("cuda", "basis", None, 2**-16),
        ("cuda", "basis", "high", 2**-11),
        ("tpu", "basis", "default", 2**-8),
        ("tpu", "exact", "default", 2**-23),
        ("tpu", "basis", "highest", 2**-23),
    ],
)
def test_the_rounding_of_a_product_is_what_is_said(backend, kind, passes, error):
    a, b = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    right = a.astype(np.float64) @ b.astype(np.float64)
    with precision.emulate(backend):
        made = precision.product(jnp.asarray(a), jnp.asarray(b), kind, passes)
        said = float(precision.rounding(kind, passes, jnp.float32))
    assert said == error
    off = np.linalg.norm(made - right) / np.linalg.norm(right)
    assert error / 64 < off < 2 * error
    # On the CPU itself nothing changes.
    plain = precision.product(jnp.asarray(a), jnp.asarray(b), kind, passes)
    np.testing.assert_array_equal(plain, jnp.matmul(a, b, precision="highest"))
    assert precision.rounding(kind, passes, jnp.float32) == 2**-23


@functools.cache
def gradients(steps=6):
    """Of a matrix `(32, 64)` of a small network that learns to guess the next byte."""
    text = np.frombuffer(inspect.getsource(argparse).encode(), np.uint8) % 128
    rng = np.random.default_rng(0)
    params = {
        "table": rng.standard_normal((128, 8)) * 0.5,
        "in": rng.standard_normal((32, 64)) / 6,
        "out": rng.standard_normal((64, 128)) / 8,
    }

    def loss(params, windows):
        inside = params["table"][windows[:, :4]].reshape(-1, 32) @ params["in"]
        scores = jax.nn.relu(inside) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(
            scores, windows[:, 4]
        ).mean()

    gradient = jax.jit(jax.grad(loss))
    found = []
    for _ in range(steps):
        starts = rng.integers(0, len(text) - 5, 256)
        grads = gradient(params, text[starts[:, None] + np.arange(5)])
        found.append(np.asarray(grads["in"], np.float64))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    return found


def directions(name, dtype, rounded=False):
    """All directions of a method at rate 1, and its last state."""
    kwargs = {"cosmos": {"rank": 6}, "soap": {"precondition_interval": 2}}.get(name, {})
    tx = optlab.registry.get(name).factory(1.0, **kwargs)
    params = {"w": jnp.zeros((32, 64), dtype)}
    state = tx.init(params)
    update = jax.jit(lambda g, s: tx.update(g, s, params))
    found = []
    for gradient in gradients():
        g = jnp.asarray(gradient, jnp.bfloat16 if rounded else dtype).astype(dtype)
        updates, state = update({"w": g}, state)
        found.append(np.asarray(updates["w"], np.float64))
    return np.stack(found), state


def bases(state):
    (found,) = (
        leaf.value
        for leaf in state_leaves(state)
        if "basis" in jax.tree_util.keystr(leaf.path)
    )
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("name", MATRIX_METHODS)
def test_directions_bear_the_policy(x64, name):
    right, state = directions(name, jnp.float64)
    inherent, _ = directions(name, jnp.float64, rounded=True)
    with precision.emulate("tpu"):
        made, rough = directions(name, jnp.float32)
    # SOAP answers nothing at first, and then signs: what is rounding flips there.
    made, right, inherent = (x[2 * (name == "soap") :] for x in (made, right, inherent))
    error = np.linalg.norm(made - right)
    assert 1e-4 * np.linalg.norm(right) < error
    assert error <= 4.5 * np.linalg.norm(inherent - right)
    if name == "cosmos":
        exact, basis = (bases(s) for s in (state, rough))
        off = exact - basis @ (basis.T @ exact)
        assert np.linalg.norm(off) / np.linalg.norm(exact) <= 2e-3


@pytest.mark.parametrize("backend", ["cuda", "tpu"])
@pytest.mark.parametrize("passes", [None, "default", "high"])
def test_cosmos_takes_no_rounding_for_a_rest(backend, passes):
    # At the full rank nothing is left outside the basis but the products' error.
    x = jnp.asarray(np.random.default_rng(2).standard_normal((16, 24)), jnp.float32)
    for gamma in (0.0, 0.2):
        tx = optlab.cosmos(1.0, rank=16, gamma=gamma, basis_precision=passes)
        state = tx.init({"w": x})
        with precision.emulate(backend):
            for sign in (1.0, -0.5):
                updates, state = tx.update({"w": sign * x}, state, {"w": x})
        if gamma == 0.0:
            alone = updates["w"]
    np.testing.assert_array_equal(updates["w"], alone)
