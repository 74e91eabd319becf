"""The loops of the documentation run, and roles are the same under every wrapper."""

import dataclasses
import pathlib
import runpy

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

import optlab
from optlab.registry import get, names
from optlab.roles import EMBEDDING, VECTOR, Embedding, Matrix, leaf_name
from tests.helpers.conformance import ON_SPHERES, SMALLER

LOOPS = pathlib.Path(__file__).parents[1] / "docs" / "loops"
DENSE = {
    "head/kernel": "embedding",
    "up/bias": "vector",
    "up/kernel": "matrix 8x16",
}
ROLES_OF_LOOPS = {
    "ensemble": DENSE,
    "meta_gradient": DENSE,
    "plain": DENSE,
    "flax_linen": {
        "conv/bias": "vector",
        "conv/kernel": "matrix 27x4",
        "head/bias": "vector",
        "head/kernel": "embedding",
        "norm/bias": "vector",
        "norm/scale": "vector",
    },
    "flax_nnx": {
        **{f"attention/{x}/bias": "vector" for x in ("query", "key", "value", "out")},
        **{
            f"attention/{x}/kernel": "matrix 8x8"
            for x in ("query", "key", "value", "out")
        },
        "embed/embedding": "embedding",
        "head/bias": "vector",
        "head/kernel": "embedding",
    },
    "with_equinox": {
        "conv/bias": "vector",
        "conv/weight": "matrix 27x4",
        "head/bias": "vector",
        "head/weight": "embedding",
    },
    "with_haiku": {
        "blocks/up/b": "vector",
        "blocks/up/w": "3 matrices 8x8",
        "head/b": "vector",
        "head/w": "embedding",
    },
}


def test_every_loop_of_the_documentation_is_here():
    assert {path.stem for path in LOOPS.glob("*.py")} == set(ROLES_OF_LOOPS)


@pytest.mark.parametrize("name", sorted(ROLES_OF_LOOPS))
def test_a_loop_of_the_documentation_learns(name):
    # A reader's own code may add a bias to a batch.
    with jax.numpy_rank_promotion("allow"):
        losses, table = runpy.run_path(str(LOOPS / f"{name}.py"))["main"](steps=12)
    losses = np.asarray(losses)
    assert len(losses) == 12
    assert (losses[-1] < 0.9 * losses[0]).all()
    assert not table.doubts
    roles = {row.path: row.role for row in table}
    assert {path: roles[path] for path in sorted(roles)} == dict(
        sorted(ROLES_OF_LOOPS[name].items())
    )


# One net in the flax layout, and its roles.
NET = {
    "attention": {"out": {"kernel": (2, 3, 6)}, "value": {"kernel": (6, 2, 3)}},
    "conv": {"bias": (4,), "kernel": (3, 3, 2, 4)},
    "embed": {"embedding": (11, 6)},
    "head": {"kernel": (6, 11)},
    "layers": {"norm": {"scale": (2, 6)}, "up": {"kernel": (2, 6, 8)}},
    "temperature": (),
}
ROLES = {
    "attention/out/kernel": Matrix((0, 1), (2,)),
    "attention/value/kernel": Matrix((0,), (1, 2)),
    "conv/bias": VECTOR,
    "conv/kernel": Matrix((0, 1, 2), (3,), (0, 1)),
    "embed/embedding": EMBEDDING,
    "head/kernel": Embedding(1),
    "layers/norm/scale": VECTOR,
    "layers/up/kernel": Matrix((1,), (2,)),
    "temperature": VECTOR,
}


def net(wrap=lambda leaf: leaf):
    return jax.tree.map(
        lambda shape: wrap(jnp.ones(shape)),
        NET,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(separator):
    leaves = jax.tree_util.tree_leaves_with_path(net())
    return {leaf_name(path).replace("/", separator): leaf for path, leaf in leaves}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Named:
    """An array with names for its axes, as haliax has them."""

    array: jax.Array
    axes: tuple = dataclasses.field(default=(), metadata={"static": True})


class Boxed(eqx.Module):
    """A module whose fields are given."""

    attention: dict
    conv: dict
    embed: dict
    head: dict
    layers: dict
    temperature: jax.Array


WRAPPED = {
    "plain": net,
    "NNX state": lambda: nnx.State(net(nnx.Param)),
    "NNX pure state": lambda: nnx.as_pure(nnx.State(net(nnx.Param))),
    "partitioned": lambda: net(lambda x: nn.Partitioned(x, (None,) * x.ndim)),
    "logically partitioned": lambda: net(
        lambda x: nn.LogicallyPartitioned(x, (None,) * x.ndim)
    ),
    "frozen": lambda: FrozenDict(net()),
    "named arrays": lambda: net(lambda x: Named(x, ("a",) * x.ndim)),
    "module": lambda: Boxed(**net()),
    "module of named arrays": lambda: Boxed(**net(Named)),
    "dots": lambda: flat("."),
    "slashes": lambda: flat("/"),
    "a list of one": lambda: net(lambda x: (x,) if x.ndim else x),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_roles_are_the_same_under_every_wrapper(kind):
    params = WRAPPED[kind]()
    rule = optlab.default_roles(stacked="^layers/")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert {leaf_name(path): rule(path, leaf) for path, leaf in leaves} == ROLES
    table = optlab.describe(params, optlab.cosmos(1e-2, rank=2, roles=rule))
    plain = optlab.describe(net(), optlab.cosmos(1e-2, rank=2, roles=rule))
    assert set(table) == set(plain)


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("name", ["cosmos", "lanton"])
def test_steps_are_the_same_under_every_wrapper(name, kind):
    rule = optlab.default_roles(stacked="^layers/")
    tx = get(name).factory(1e-2, roles=rule)

    def shapes(params):
        updates, state = tx.update(params, tx.init(params), params)
        return [x.shape for x in jax.tree.leaves(updates)], [
            x.shape for x in jax.tree.leaves(state)
        ]

    def of(params):
        found = []
        jax.eval_shape(lambda p: found.append(shapes(p)), params)
        return tuple(map(sorted, found[0]))

    assert of(WRAPPED[kind]()) == of(net())


class Transformer(nnx.Module):
    """All layers that the roles tell apart by name."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.conv = nnx.Conv(4, 6, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 7, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = self.conv(x + self.attention(x))
        return self.head(nnx.relu(self.norm(x)))


@pytest.mark.parametrize("name", names())
def test_nnx_optimizer_does_what_plain_dictionaries_do(name):
    """AdaHessian gets squared gradients in the place of a Hessian diagonal."""
    tx = get(name).factory(1e-2, **SMALLER.get(name, {}))
    tokens = jnp.arange(10).reshape(2, 5) % 7

    def loss(model):
        logits = jax.nn.log_softmax(model(tokens))
        return -jnp.mean(jnp.take_along_axis(logits, tokens[..., None], -1))

    def extras(grads):
        if not get(name).needs:
            return {}
        assert get(name).needs == ("hessian_diag",)
        return {"hessian_diag": jax.tree.map(jnp.square, grads)}

    @nnx.jit
    def step(model, optimizer, p, state):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads, **extras(nnx.as_pure(grads)))
        g = jax.grad(lambda p: loss(nnx.merge(graph, nnx.State(p))))(p)
        updates, state = tx.update(g, state, p, **extras(g))
        return value, optax.apply_updates(p, updates), state

    model = Transformer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graph, params = nnx.split(model, nnx.Param)
    p = nnx.to_pure_dict(params)
    state, losses = tx.init(p), []
    for _ in range(3):  # SOAP's first call changes no parameter
        value, p, state = step(model, optimizer, p, state)
        losses.append(value)
    assert losses[-1] < losses[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(nnx.to_pure_dict(nnx.state(model, nnx.Param)), p),
    )


def haiku_net(tokens):
    x = hk.Embed(7, 4, name="embed")(tokens)
    x = hk.Conv1D(6, 3, name="conv")(x)
    x = hk.LayerNorm(-1, True, True, name="norm")(x)
    return hk.Linear(7, name="head")(jax.nn.relu(x))


def test_haiku_roles():
    tokens = jnp.zeros((2, 5), jnp.int32)
    params = hk.transform(haiku_net).init(jax.random.key(0), tokens)
    rows = optlab.describe(params, optlab.default_roles(layout="haiku"))
    assert {row.path: row.role for row in rows} == {
        "conv/b": "vector",
        "conv/w": "matrix 12x6",
        "embed/embeddings": "embedding",
        "head/b": "vector",
        "head/w": "embedding",
        "norm/offset": "vector",
        "norm/scale": "vector",
    }
    assert not rows.doubts


class Patches(eqx.Module):
    """Like Equinox's ViT: functions and integers beside the arrays, layers in lists."""

    patch: eqx.nn.Conv2d
    layers: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    positions: jax.Array
    tokens: jax.Array
    size: int
    activation: object

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.patch = eqx.nn.Conv2d(1, 4, 2, 2, key=keys[0])
        self.layers = [eqx.nn.MultiheadAttention(2, 4, key=keys[1])]
        self.norm = eqx.nn.LayerNorm(4)
        self.head = eqx.nn.Linear(4, 3, key=keys[2])
        self.positions = 0.1 * jax.random.normal(keys[3], (4, 4))
        self.tokens = jnp.arange(4)
        self.size = 4
        self.activation = jax.nn.gelu

    def __call__(self, image):
        x = self.patch(image).reshape(self.size, -1).T
        x = x + self.positions[self.tokens]
        for layer in self.layers:
            x = x + layer(x, x, x)
        return self.head(self.activation(jax.vmap(self.norm)(x).mean(0)))


def equinox_loss(net, images):
    logits = jax.nn.log_softmax(jax.vmap(net)(images))
    return -jnp.mean(logits[:, 0])


def with_roles(name, **kwargs):
    roles = optlab.default_roles(layout="torch")
    return get(name).build(1e-2, roles=roles, **SMALLER.get(name, {}) | kwargs)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("optax's adamw", eqx.is_inexact_array),
        *((name, eqx.is_inexact_array) for name in names()),
        # State for integers too, which optax's own adamw does not take.
        *((name, eqx.is_array) for name in names()),
    ],
)
def test_update_takes_a_whole_equinox_module(name, kept):
    known = name in names()
    tx = with_roles(name) if known else optax.adamw(1e-2)
    model = Patches(jax.random.key(0))
    images = jnp.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)

    def step(model, state):
        grads = eqx.filter_grad(equinox_loss)(model, images)
        more = {need: grads for need in get(name).needs} if known else {}
        updates, state = tx.update(grads, state, model, **more)
        return grads, updates, state, eqx.apply_updates(model, updates)

    state = tx.init(eqx.filter(model, kept))
    grads, updates, new_state, trained = eqx.filter_eval_shape(step, model, state)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert jax.tree.structure(trained) == jax.tree.structure(model)


@pytest.mark.parametrize("name", sorted({*names()} - {"scion", *ON_SPHERES}))
def test_nobody_asks_for_parameters_that_nothing_needs(name):
    """Scion's decay is its own; unconstrained it has none. Spheres need a place."""
    tx = with_roles(name)
    grads = net()
    more = {need: grads for need in get(name).needs}
    jax.eval_shape(lambda g: tx.update(g, tx.init(g), **more), grads)


def test_unconstrained_scion_needs_no_parameters():
    tx = optlab.scion(1e-2, constrained=False)
    jax.eval_shape(lambda g: tx.update(g, tx.init(g)), net())


def test_the_package_has_its_version_and_its_rooms():
    assert optlab.__version__.count(".") == 2
    assert callable(optlab.sharding.make_mesh)
    assert callable(optlab.diagnostics.layer_diagnostics)
