"""What is no argument of an optimizer is refused where the optimizer is built."""

import inspect
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.inside import spectrum
from optlab.inside.rank import effective_rank
from optlab.registry import get, names
from tests.helpers.conformance import ON_SPHERES, extras

PARAMS = {"bias": jnp.ones(3), "embed": jnp.ones((5, 4)), "w": jnp.ones((4, 3))}
ROOM_FOR_NONE = {
    "basis_precision",
    "adam_weight_decay",
    "consistent_rms",
    "chunk_bytes",
    "distribute",
    "embedding_scale",
    "initial_eigenvalue",
    "mu_dtype",
    "ns_coeffs",
    "ns_dtype",
    "shampoo_beta",
    "total_steps",
    "weight_decay_mask",
}
# By the kind of the default: what a slip of the pen may give.
NEVER = ["nonsense", (0.9, 0.99), float("nan"), object(), 1j, "1e-3", np.ones(2)]
VALUES = [
    *(None, True, -1, 0, 1, 2, 0.5, 1.0, 2.5, 10**7, 10**12, 10**400, -0.1),
    *(float("nan"), float("inf"), "1e-3", "bfloat16", "float23", "int32", "paired"),
    *((0.9, 0.99), (3.4, -4.8, 2.0), [], {}, {"w": True}, "matrices", "frobenius"),
    *(np.float32(0.25), np.int64(3), np.array(0.5), np.array([0.1, 0.2]), 1e-3, 20),
]
SENSIBLE = [0, 1, 2, 3, 20, 0.25, 0.5, 1e-3, None, True, np.float32(0.25), np.int64(3)]


def arguments(name):
    """The factory's, but for the roles."""
    return [a for a in inspect.signature(get(name).factory).parameters if a != "roles"]


def build(name, kwargs):
    return get(name).factory(**{"learning_rate": 1e-2, **kwargs})


def assert_refused(name, kwargs):
    """In one line that names one of the arguments."""
    with pytest.raises((ValueError, TypeError)) as caught:
        build(name, kwargs)
    message = str(caught.value)
    assert any(a in message for a in kwargs) and "\n" not in message, message


@pytest.mark.parametrize("name", names())
def test_what_fits_no_argument_is_refused_by_each(name):
    for argument in arguments(name):
        for value in NEVER:
            assert_refused(name, {argument: value})
        if not (argument.endswith("learning_rate") or argument in ROOM_FOR_NONE):
            assert_refused(name, {argument: None})
        default = inspect.signature(get(name).factory).parameters[argument].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number or argument.endswith("learning_rate"):
            assert_refused(name, {argument: True})


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("ns_dtype", ["float23", "int32", "float8_e4m3fn", 3, True]),
        ("mu_dtype", ["float23", "int32", "complex64", 3, True]),
        ("ns_steps", [0, 101, 10_000_000, 5.0]),
        ("nesterov", [1, "no"]),
        ("reset_interval", [-1, 2**31, 0.5]),
        ("seed", [-1, 2**31, 0.5, True]),
        ("weight_decay_mask", [{"w": 0.1}, "vectors", []]),
        ("chunk_bytes", [0, -1, 2.0**20, True, "1MB", 2**63]),
        ("distribute", ["data", {"data": 8}]),
        ("ns_coeffs", [{}, (1.0, 2.0), {(4, 3): (1.0,)}]),
        ("alpha", [0, -1.0]),
        ("density", [0, 1.5]),
    ],
)
def test_values_out_of_range_are_refused(argument, values):
    entries = [name for name in names() if argument in arguments(name)]
    assert entries
    for name in entries:
        for value in values:
            assert_refused(name, {argument: value})


def test_random_arguments_are_refused_at_once_or_work():
    draw = random.Random(0)
    outcomes = {"works": 0, "refused": 0}
    for _ in range(100):
        name = draw.choice(names())
        chosen = draw.sample(arguments(name), draw.choice((1, 1, 2)))
        values = draw.choice((VALUES, SENSIBLE, SENSIBLE))
        kwargs = {a: draw.choice(values) for a in chosen}
        try:
            tx = build(name, kwargs)
        except (ValueError, TypeError):
            assert_refused(name, kwargs)
            outcomes["refused"] += 1
            continue
        params = PARAMS
        if isinstance(kwargs.get("weight_decay_mask"), dict):
            params = {"w": PARAMS["w"]}
        needed = {"other_grads": params} | extras(name, params)
        state = jax.eval_shape(tx.init, params)
        updates, _ = jax.eval_shape(
            lambda g, s, p, tx=tx, needed=needed: tx.update(g, s, p, **needed),
            *(params, state, params),
        )
        assert jax.tree.structure(updates) == jax.tree.structure(params), kwargs
        outcomes["works"] += 1
    assert min(outcomes.values()) > 20, outcomes


@pytest.mark.parametrize("name", names())
def test_a_rate_of_none_is_no_scaling_as_in_optax(name):
    if name in ON_SPHERES:  # Their step has no form without a size.
        assert_refused(name, {"learning_rate": None})
        return
    params = {"bias": jnp.array([1.0, -2.0, 3.0])}
    results = []
    for rate in (None, 1.0):
        tx = build(name, {"learning_rate": rate})
        state = tx.init(params)
        for _ in range(2):  # The first call of SOAP moves nothing.
            updates, state = tx.update(params, state, params, **extras(name, params))
        results.append(updates["bias"])
    np.testing.assert_array_equal(results[0], -results[1])
    assert np.any(results[0])


@pytest.mark.parametrize("name", names())
def test_injection_names_all_static_arguments_at_once(name):
    numbers = {
        p.name
        for p in inspect.signature(get(name).factory).parameters.values()
        if isinstance(p.default, int) and not isinstance(p.default, bool)
    } - {"seed"}
    if not numbers:
        optax.inject_hyperparams(get(name).factory)(1e-2).init(PARAMS)
        return
    with pytest.raises(ValueError, match="static_args") as caught:
        optax.inject_hyperparams(get(name).factory)(1e-2).init(PARAMS)
    named = str(caught.value).partition(" must")[0].split(", ")
    assert numbers <= set(named)
    tx = optax.inject_hyperparams(get(name).factory, static_args=named)(1e-2)
    jax.eval_shape(tx.init, PARAMS)


def test_transforms_refuse_what_their_aliases_refuse():
    for build_one in (
        lambda: optlab.clip_outliers(True),
        lambda: optlab.clip_spikes(b2="0.9"),
        lambda: optlab.noise_adaptive(optax.sgd(1.0), alpha=float("nan")),
        lambda: optlab.reset_every(optax.sgd(1.0), 2**40),
        lambda: optlab.scale_by_lmo(b1=(0.9,)),
        lambda: optlab.by_role(optax.sgd(1.0), optlab.registry.sgd("1")),
    ):
        with pytest.raises(ValueError, match="must be"):
            build_one()


# What takes a transform, and the argument that it comes in.
TAKES_TRANSFORM = {
    "cautious": ("tx", optlab.cautious),
    "skip_spikes": ("tx", optlab.skip_spikes),
    "small_state": ("tx", optlab.small_state),
    "split_weights": ("tx", optlab.split_weights),
    "noise_adaptive": ("direction", optlab.noise_adaptive),
    "hyperball": ("direction", lambda x: optlab.hyperball(x, 0.1)),
    "reset_every": ("inner", lambda x: optlab.reset_every(x, 10)),
    "by_role": ("matrices", lambda x: optlab.by_role(x, optax.sgd(1.0))),
    "by_role, others": ("others", lambda x: optlab.by_role(optax.sgd(1.0), x)),
    "offloaded": ("tx", optlab.sharding.offloaded),
    "init_state": ("tx", lambda x: optlab.sharding.init_state(x, PARAMS)),
    "state_specs": ("tx", lambda x: optlab.sharding.state_specs(x, PARAMS, PARAMS)),
    "state_shardings": ("tx", lambda x: optlab.sharding.state_shardings(x, PARAMS)),
    "target_step": (
        "tx",
        lambda x: optlab.target_step(
            jnp.dot, jnp.sum, *(jnp.ones(2),) * 3, tx=x, eta=0.1, steps=1
        ),
    ),
}


@pytest.mark.parametrize("name", TAKES_TRANSFORM)
def test_what_is_no_transform_is_refused_by_all_that_take_one(name):
    argument, take = TAKES_TRANSFORM[name]
    for value in (None, 1.0, optlab.lion, optax.MultiSteps, PARAMS, "lion"):
        with pytest.raises(ValueError) as caught:
            take(value)
        message = str(caught.value)
        start = f"{argument} must be an optax transformation, such as optlab.lion(1e-4)"
        assert message.startswith(start) and "\n" not in message, message
    with pytest.raises(ValueError, match="got lion, not called"):
        take(optlab.lion)


def test_an_optimizer_is_no_factory_and_multi_steps_is_a_transform():
    with pytest.raises(ValueError, match=r"factory must be .*such as optlab.lion, got"):
        optlab.inject_hyperparams(optlab.lion(1e-4))
    several = optax.MultiSteps(optlab.lion(1e-4), 2)
    state = jax.eval_shape(optlab.skip_spikes(several).init, PARAMS)
    assert isinstance(state.inner, optax.MultiStepsState)


def test_a_string_is_no_tuple_of_names():
    for value in ("mu", None, (1,), 3):
        for argument in ("first_moments", "second_moments"):
            with pytest.raises(ValueError, match=f"{argument} must be a tuple of name"):
                optlab.small_state(optax.adam(1.0), **{argument: value})
    for needs in ("hessian_diag", 3):
        with pytest.raises(ValueError, match="needs must be a tuple of names"):
            optlab.register("its own", optlab.lion, needs=needs)
    assert "its own" not in names()


WHOLE = jnp.arange(6).reshape(2, 3)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: optlab.orthogonalize(WHOLE),
        lambda: optlab.orthogonalize([[1, 2], [3, 4]]),
        lambda: optlab.orthogonalize(jnp.ones((2, 3), complex)),
        lambda: optlab.orthogonalize("matrix"),
        lambda: optlab.conflict.cosine({"a": WHOLE}, {"a": WHOLE}),
        lambda: optlab.conflict.realign([{"a": WHOLE}, {"a": 1 - WHOLE}]),
        lambda: optlab.conflict.min_norm([[1.0], [-1.0]]),
        lambda: optlab.rademacher_like(KEY, [1.0]),
        lambda: optlab.value_grad_and_hessian_diag(jnp.sum)(WHOLE, KEY),
        lambda: optlab.zo_value_and_grad(jnp.sum)(WHOLE, KEY),
        lambda: optlab.forward_value_and_grad(jnp.sum)([1.0], KEY),
        lambda: spectrum.spectrum(lambda v: v, WHOLE, KEY, order=1),
        lambda: spectrum.top_eigenvalue(lambda v: v, {"a": 1.0}, KEY),
        lambda: optlab.lion(1.0).update(WHOLE, optlab.lion(1.0).init(WHOLE), WHOLE),
        lambda: optlab.clip_outliers().update({"w": WHOLE}, optax.EmptyState()),
    ],
)
def test_whole_numbers_and_what_is_no_array_are_refused(call):
    """Results in their own dtype would be cut to whole numbers."""
    with pytest.raises(ValueError, match=r"floating") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_lists_and_whole_numbers_are_taken_where_the_result_is_floating():
    nested = [[3.0, 0.0], [0.0, 4.0]]
    found = optlab.orthogonalize(nested, steps=1)
    np.testing.assert_array_equal(
        found, optlab.orthogonalize(np.array(nested), steps=1)
    )
    for matrix in ([[1, 0], [0, 1]], np.eye(2, dtype=int)):
        assert float(effective_rank(matrix)) == pytest.approx(2, abs=1e-5)
    with pytest.raises(ValueError, match=r"matrix must have shape"):
        effective_rank([1.0, 2.0])
    with pytest.raises(ValueError, match="of real numbers"):
        optlab.fit_coefficients((4, 4), 2, singular_values=[2.0, 1j])
    assert optlab.blocks_in_turn([1.0, np.ones(3)], 2, 0)[0]


def test_the_decay_of_a_momentum_has_two_names():
    methods = [n for n in names() if {"b1", "momentum"} & set(arguments(n))]
    assert len(methods) == len(names())
    params = {"w": PARAMS["w"], "bias": PARAMS["bias"]}

    def program(build_one):
        tx = build_one()
        state = jax.eval_shape(tx.init, params)
        return str(jax.make_jaxpr(tx.update)(params, state, params))

    for name in set(methods) - {"lion"}:
        own = "b1" if "b1" in arguments(name) else "momentum"
        other = {"b1": "momentum", "momentum": "b1"}[own]
        with pytest.raises(ValueError, match=f"{own} and {other} are one argument"):
            build(name, {"b1": 0.5, "momentum": 0.5})
        assert get(name).taken({other: 0.5}) == {own: 0.5}
    assert program(lambda: optlab.muon(1e-2, b1=0.5)) == program(
        lambda: optlab.muon(1e-2, momentum=0.5)
    )
    assert program(lambda: optlab.directions.spam(momentum=0.5)) == program(
        lambda: optlab.directions.spam(b1=0.5)
    )
    injected = optlab.inject_hyperparams(optlab.soap)(1e-2, momentum=0.5)
    assert set(injected.init(params).hyperparams) == {"learning_rate", "b1"}
    with pytest.raises(TypeError, match="momentum"):  # There b2 is that.
        build("lion", {"momentum": 0.5})
