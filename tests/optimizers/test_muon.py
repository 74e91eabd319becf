"""Muon against `optax.contrib.muon`: the matrices, the other leaves, the arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab.matrices.coefficients.presets import resolve_coefficients

DIMS = optax.contrib.MuonDimensionNumbers
SHAPES = {
    "wide": ((6, 20), DIMS()),
    "tall": ((20, 6), DIMS()),
    "square": ((12, 12), DIMS()),
    "stack": ((3, 6, 10), DIMS(1, 2)),
    "conv": ((3, 3, 2, 24), DIMS((0, 1, 2), 3)),
    "embed": ((11, 6), None),
    "bias": ((6,), None),
}
ROLES = {name: dims for name, (_, dims) in SHAPES.items()}
TRIPLE = (2.0, -1.5, 0.5)

# What both are given, then ours and optax's.
CASES = {
    "nesterov": ({}, {}, {}),
    "plain": (
        {
            "nesterov": False,
            "consistent_rms": None,
            "ns_coeffs": TRIPLE,
            "ns_steps": 4,
            "weight_decay": 0.1,
            "adam_weight_decay": 0.3,
        },
        {},
        {},
    ),
    "dion": ({"ns_coeffs": "dion"}, {}, {}),
    "schatten": (
        {},
        {"normalize": "schatten4", "momentum": 0.5},
        {"preconditioning": "schatten", "beta": 0.5},
    ),
    "polar express": (
        {"eps": 1e-2},
        {"ns_coeffs": "polar_express"},
        {"ns_coeffs": resolve_coefficients("polar_express", 5)},
    ),
}


def normal(seed, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), dtype)
        for name, (shape, _) in SHAPES.items()
    }


def pairs(cases):
    """Ours and optax's of each case at rate one, by its name."""
    ours, theirs = {}, {}
    for case in cases:
        both, own, other = CASES[case]
        both = {"consistent_rms": 0.2, **both}
        adam = {
            "adam_nesterov": both.get("nesterov", True),
            "adam_b2": 0.999,
            "adam_eps": both.get("eps", 1e-8),
        }
        ours[case] = optlab.muon(1.0, roles=ROLES, **adam, **both, **own)
        theirs[case] = optax.contrib.muon(
            1.0, muon_weight_dimension_numbers=ROLES, **both | other
        )
    return ours, theirs


def followed(txs, dtype):
    """The updates of three steps of each, compiled together."""
    params = normal(0, dtype)

    @jax.jit
    def step(grads, states):
        done = {n: tx.update(grads, states[n], params) for n, tx in txs.items()}
        return [{n: pair[i] for n, pair in done.items()} for i in (0, 1)]

    states = {n: tx.init(params) for n, tx in txs.items()}
    for seed in range(1, 4):
        updates, states = step(normal(seed, dtype), states)
        yield updates


def hold(cases, dtype, tolerance):
    """Every update, of an RMS of 0.2, is optax's to that."""
    ours, theirs = (followed(txs, dtype) for txs in pairs(cases))
    for found, expected in zip(ours, theirs, strict=True):
        for case in cases:
            for leaf, y in expected[case].items():
                assert found[case][leaf].dtype == dtype
                np.testing.assert_allclose(
                    *(found[case][leaf], y),
                    rtol=0,
                    atol=tolerance,
                    err_msg=f"{case}, {leaf}",
                )


def test_the_numbers_are_optaxs_in_float64(x64):
    hold([*CASES], jnp.float64, 1e-12)


def test_the_numbers_are_optaxs_in_float32():
    # Five products amplify what two programs round apart.
    hold(["nesterov"], jnp.float32, 1e-5)


def first_step(grads, **kwargs):
    """The update of ones by those gradients at rate one."""
    tx = optlab.muon(1.0, **kwargs)
    return tx.update(grads, tx.init(grads), jax.tree.map(jnp.ones_like, grads))[0]


def test_fitted_coefficients_leave_less_error():
    # Of a shape whose fits are in the table.
    rng = np.random.default_rng(0)
    grads = {"w": jnp.asarray(rng.standard_normal((32, 16)), jnp.float32)}

    def error(**kwargs):
        """Of the singular values, which are to be the scale, one for a tall matrix."""
        update = first_step(grads, consistent_rms=None, **kwargs)["w"]
        return np.mean((np.linalg.svd(update, compute_uv=False) - 1) ** 2)

    assert error(ns_coeffs="fitted") < 0.5 * error()
    assert error(ns_coeffs="fitted", normalize="schatten4") < 0.5 * error()


def test_other_leaves_get_adam_or_nadam():
    """The first step of Adam is the rate, that of NAdam is longer."""
    grads = {"bias": jnp.ones(3)}
    np.testing.assert_allclose(first_step(grads)["bias"], -1.0, rtol=1e-6)
    nadam = first_step(grads, adam_nesterov=True)["bias"]
    np.testing.assert_allclose(nadam, -(0.9 * 0.1 / (1 - 0.9**2) + 1), rtol=1e-5)


def test_half_precision_products_move_the_update_little():
    grads = {"w": normal(0)["wide"]}
    half = first_step(grads, ns_dtype=jnp.bfloat16)["w"]
    full = first_step(grads)["w"]
    assert half.dtype == full.dtype
    # Five steps of Muon's coefficients leave some percent of bfloat16's rounding.
    assert 0 < np.linalg.norm(half - full) < 0.1 * np.linalg.norm(full)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ns_coeffs": "mouon"}, "ns_coeffs must be one of muon, .*'mouon'"),
        ({"ns_coeffs": "dion", "ns_steps": 4}, r"4 steps, got \(5, 3\) of 'dion'"),
        ({"ns_coeffs": [TRIPLE] * 4}, "for 5 steps"),
        ({"normalize": "spectral"}, "normalize must be one of"),
        ({"consistent_rms": 0.0}, "consistent_rms must be a number > 0"),
    ],
)
def test_a_wrong_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optlab.muon(1e-2, **kwargs)
