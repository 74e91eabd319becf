"""Derivatives through a few steps are finite, and those that differences give."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.inject import takes_array
from optlab.registry import get, names
from tests.helpers.conformance import SMALLER

ROLES = optlab.default_roles(stacked="^layers/")
CASES = {
    # Of the hyperball steps one: the others' directions stand here themselves.
    **{n: (n, {}) for n in names() if not n.endswith("_h") or n == "adam_h"},
    "lanton, lanczos": ("lanton", {"dual_norm": "lanczos"}),
    "lanton, exact": ("lanton", {"dual_norm": "exact"}),
    "lanton, frobenius": ("lanton", {"dual_norm": "frobenius"}),
    # Of the longer side of a gradient some directions are seen later than others, and
    # what a refresh makes of those before is rounding: there is no derivative then.
    "soap, every step": ("soap", {"precondition_interval": 1, "one_sided": True}),
    "cosmos, low rank": ("cosmos", {"rank": 2}),
    "spam, sparse": ("spam", {"density": 0.5, "reset_interval": 2, "warmup_steps": 1}),
    "adahessian, root": ("adahessian", {"hessian_power": 0.5}),
}
# Where a default leaves nothing to differentiate, or a difference nothing to see.
VALUES = {"learning_rate": 0.05, "weight_decay": 0.1, "eps": 1e-3, "adam_eps": 1e-3}


def params():
    """One leaf of every role, and a matrix that never has a gradient."""
    rng = np.random.default_rng(0)
    shapes = {
        "dead/kernel": (5, 3),
        "embed/embedding": (4, 3),
        "layers/kernel": (2, 4, 4),
        "wide/bias": (5,),
        "wide/kernel": (3, 5),
    }
    made = {k: jnp.asarray(rng.standard_normal(shape)) for k, shape in shapes.items()}
    return {**made, "dead/kernel": jnp.ones((5, 3))}


def loss(p):
    x = jnp.tanh(p["embed/embedding"])
    x = jnp.sin(x @ p["wide/kernel"] + p["wide/bias"][None])
    y = jnp.tanh(x @ p["wide/kernel"].T)
    weights = jnp.arange(1.0, 33.0).reshape(2, 4, 4) / 10
    layers = jnp.sum(weights * jnp.cos(p["layers/kernel"]) ** 2)
    return jnp.sum((y - 1) ** 2) + layers + 0 * jnp.sum(p["dead/kernel"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_derivatives_by_every_number_are_those_of_differences(case):
    name, own = CASES[case]
    factory = get(name).factory
    arguments = inspect.signature(factory).parameters
    own = {**SMALLER.get(name, {}), **own}
    numbers = {
        key: own.pop(key, VALUES.get(key, argument.default))
        for key, argument in arguments.items()
        if takes_array(argument)
    }
    if "roles" in arguments:
        own["roles"] = ROLES
    if "rank" in arguments:
        own.setdefault("rank", 3)

    def after_three_steps(numbers):
        tx = factory(**numbers, **own)

        def step(carry, _):
            p, state = carry
            grads = jax.grad(loss)(p)
            # As a Hessian's diagonal, something that is 0 where the gradient is.
            more = {need: jax.tree.map(lambda g: 0.5 * g, grads) for need in needs}
            updates, state = tx.update(grads, state, p, **more)
            return (optax.apply_updates(p, updates), state), None

        start = params(), tx.init(params())
        return loss(jax.lax.scan(step, start, length=3)[0][0])

    needs = get(name).needs
    both = jax.jit(jax.value_and_grad(after_three_steps))
    _, found = both(numbers)
    assert found
    for key, number in numbers.items():
        h = 1e-5 * max(abs(number), 1e-2)
        (above, _), (below, _) = (both({**numbers, key: number + d}) for d in (h, -h))
        np.testing.assert_allclose(
            found[key], (above - below) / (2 * h), rtol=1e-4, atol=1e-6, err_msg=key
        )
    assert found["learning_rate"] != 0
