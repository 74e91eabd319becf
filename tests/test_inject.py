"""Numbers that a caller gives stand in the state; all else stays where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.registry import get, names
from tests.helpers.conformance import ROLES, SMALLER, extras, zoo

every_entry = pytest.mark.parametrize("name", names())


def given(name):
    """Schedules for rate, decay and momentum, and a size, where the entry has them."""
    wanted = {
        "weight_decay": optax.linear_schedule(0.1, 0.3, 2),
        "b1": optax.linear_schedule(0.9, 0.5, 2),
        "adam_weight_decay": optax.constant_schedule(0.2),
        "adam_eps": 1e-6,
        "alpha": 2,
        "rank": 3,
        "ns_steps": 4,
        "quantile": 0.8,
        "reset_interval": 10,
        "weight_decay_mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        "roles": ROLES,
        "mu_dtype": jnp.float32,
        "dual_norm": lambda x: jnp.linalg.norm(x, axis=(-2, -1)),
    }
    return get(name).taken(wanted)


INJECTED = {"weight_decay", "b1", "momentum", "adam_weight_decay", "adam_eps", "alpha"}


@every_entry
def test_what_is_given_is_in_the_state_and_does_the_same(name):
    arguments = given(name)
    factory = get(name).factory
    rate = optax.linear_schedule(1e-2, 2e-2, 2)
    tx = optlab.inject_hyperparams(factory)(learning_rate=rate, **arguments)
    params, grads = zoo(), zoo(seed=1)

    def at(step):
        """The same optimizer with the numbers of one step, written down."""
        numbers = {
            k: float(v(step)) if k in INJECTED and callable(v) else v
            for k, v in arguments.items()
        }
        return factory(float(rate(step)), **numbers)

    written = at(0), at(1)

    @jax.jit
    def two_steps(params, grads):
        state, results = tx.init(params), []
        plain = written[0].init(params)
        for same in written:
            more = extras(name, grads)
            updates, state = tx.update(grads, state, params, **more)
            expected, plain = same.update(grads, plain, params, **more)
            results.append((updates, expected))
        return results, state.hyperparams

    results, numbers = two_steps(params, grads)
    expected = INJECTED & arguments.keys() | {"learning_rate"}
    assert set(numbers) == expected
    assert all(x.dtype == jnp.float32 for x in numbers.values())
    np.testing.assert_allclose(numbers["learning_rate"], 1.5e-2)
    if "weight_decay" in numbers:
        np.testing.assert_allclose(numbers["weight_decay"], 0.2, rtol=1e-6)
    for updates, wanted in results:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            *(updates, wanted),
        )


@every_entry
def test_a_number_in_the_state_can_be_changed(name):
    factory = optlab.inject_hyperparams(get(name).factory)
    tx = factory(1, **SMALLER.get(name, {}))
    state = jax.eval_shape(tx.init, zoo())
    own = {"learning_rate", *SMALLER.get(name, {})}
    assert set(state.hyperparams) == own
    assert state.hyperparams["learning_rate"].dtype == jnp.float32
    assert set(optlab.current_learning_rate(state)) == {"learning_rate"}
    assert factory.__name__ == get(name).factory.__name__


def test_one_rate_for_another_without_a_second_compile():
    tx = optlab.inject_hyperparams(optlab.cosmos)(1e-2, rank=2, b1=0.5)
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    update = jax.jit(tx.update)
    state = tx.init(params)
    once, _ = update(params, state, params)
    state.hyperparams["learning_rate"] = jnp.float32(2e-2)
    twice, _ = update(params, state, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-6), once, twice
    )
    assert update._cache_size() == 1


@pytest.mark.parametrize("bad", [{"b1": 1.5}, {"rank": 0}, {"weight_decay": -1.0}])
def test_numbers_out_of_range_are_named_all_the_same(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        optlab.inject_hyperparams(optlab.cosmos)(1e-2, **bad)


def test_factories_of_optax_and_of_others():
    tx = optlab.inject_hyperparams(optax.adamw)(1e-3, weight_decay=0.1)
    assert set(tx.init(jnp.ones(3)).hyperparams) == {"learning_rate", "weight_decay"}

    def own(learning_rate, size=3, beta=0.5, flag=True):
        assert (size, flag) == (4, False)
        return optax.sgd(learning_rate, beta)

    tx = optlab.inject_hyperparams(own)(optax.constant_schedule(1.0), 4, 0.1, False)
    assert set(tx.init(jnp.ones(3)).hyperparams) == {"learning_rate", "beta"}

    def with_options(learning_rate, /, *masks, **options):
        assert masks == (None,)
        return optlab.cosmos(learning_rate, **options)

    tx = optlab.inject_hyperparams(with_options)(0.1, None, rank=2, weight_decay=0.1)
    assert set(tx.init(jnp.ones((4, 3))).hyperparams) == {"learning_rate"}


def test_what_a_factory_does_not_take_is_refused_with_its_name():
    injected = optlab.inject_hyperparams(optlab.cosmos)
    with pytest.raises(TypeError, match=r"^cosmos\(\) .*'weigth_decay'"):
        injected(1e-3, weigth_decay=0.1)
    with pytest.raises(TypeError, match=r"^cosmos\(\) .*'learning_rate'"):
        injected(1e-3, learning_rate=0.1)
