"""Every wrapper over every entry: ten steps, a schedule, a mask, a mesh, a restart."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optlab
from docs.site.combinations import WRAPPERS, refusal, table
from optlab import directions, sharding
from optlab.matrices import lowbit
from optlab.registry import adamw, get, names
from optlab.signatures import accepted
from tests.helpers.conformance import ON_SPHERES, SMALLER, extras

SHAPES = {"embed": (8, 8), "layers": {"kernel": (8, 8, 16)}, "norm": {"scale": (8,)}}
ROLES = optlab.default_roles(stacked=("^layers/",), embeddings=("^embed",))
MASK = {"embed": True, "layers": {"kernel": True}, "norm": {"scale": False}}
RATE = optax.linear_schedule(2e-2, 1e-2, 10)
STEPS = 10


def arrays(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def offered(name, **kwargs):
    return {"roles": ROLES, "rank": 4, **SMALLER.get(name, {}), **kwargs}


def entry(name, **kwargs):
    return get(name).build(RATE, **offered(name, **kwargs))


def narrowed(x):
    return x.astype(jnp.bfloat16)


def around(name, **kwargs):
    """One in another: parts, skips, small moments, cautious steps and decay."""
    tx = entry(name, weight_decay=0.1, cautious_decay=True, **kwargs)
    tx = optlab.small_state(optlab.cautious(tx, roles=ROLES))
    tx = optlab.skip_spikes(tx, window=4, factor=20.0, watch="both")
    labels = jax.tree.map(lambda x: "trained" if x else "frozen", MASK)
    return optax.partition(
        {"trained": tx, "frozen": optax.set_to_zero()},
        labels,
        mask_compatible_extra_args=True,
    )


def beneath(name):
    """Bfloat16 weights whose moments are too, by direction, neurons and sphere."""
    if refusal(name, "hyperball"):
        tx = optlab.small_state(entry(name), "bfloat16")
    else:
        factory = getattr(directions, name)
        direction = factory(**accepted(factory, offered(name)))
        neurons = optlab.normalize_neurons(roles=ROLES)
        small = optlab.small_state(optax.chain(direction, neurons), "bfloat16")
        ball = optlab.hyperball(small, RATE, roles=ROLES)
        tx = optlab.by_role(ball, optax.adam(RATE), ROLES)
    return optax.masked(optlab.split_weights(tx), jax.tree.map(lambda x: True, MASK))


def distance(params, target):
    apart = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), params, target)
    return sum(jax.tree.leaves(apart))


def train(name, tx, params, state=None):
    """Ten steps towards other parameters: the losses, the parameters, the state."""
    target = arrays(1)

    def step(carry, _):
        params, state = carry
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        loss, grads = jax.value_and_grad(distance)(wide, target)
        updates, state = tx.update(
            grads, state, params, value=loss, **extras(name, grads)
        )
        return (optax.apply_updates(params, updates), state), loss

    if state is None:
        state = tx.init(params)
    (params, state), losses = jax.lax.scan(step, (params, state), length=STEPS)
    return losses, params, state


def restored(folder, tree):
    """What a checkpoint has of it."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", tree)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
        return checkpointer.restore(folder / "state", abstract)


@pytest.mark.parametrize("name", names())
def test_ten_steps_of_every_wrapper_over_every_entry(name, tmp_path):
    """What the table of docs/wrappers.md says, twice through one compiled program."""
    params = arrays()
    around_it = optax.MultiSteps(around(name), 2)
    transforms = {"around": around_it, "beneath": beneath(name)}
    copy = jax.tree.map(jnp.array, params)
    before = {"around": copy, "beneath": jax.tree.map(narrowed, params)}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, states):
        return {
            key: train(name, tx, params[key], states[key])
            for key, tx in transforms.items()
        }

    @jax.jit
    def init(params):
        return {key: tx.init(params) for key, tx in transforms.items()}

    # On the host: each little operation on a device is a compilation.
    found = jax.device_get(run(before, init(params)))
    params = jax.device_get(params)
    before = {"around": params, "beneath": jax.tree.map(narrowed, params)}
    for key, (losses, new, state) in found.items():
        assert all(
            np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves(new)
        )
        assert losses[-1] < losses[0], key
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), new, before[key])
        assert moved["layers"]["kernel"] and moved["embed"], key
        assert moved["norm"]["scale"] == (key != "around"), key
        kernels = [x for x in jax.tree.leaves(state) if x.shape == (8, 8, 16)]
        kept = jnp.dtype(jnp.int8 if key == "around" else jnp.bfloat16)
        assert kept in {x.dtype for x in kernels}, key
    _, _, state = found["around"]
    assert int(optlab.skipped_steps(state)["skipped_steps"]) == 0
    assert int(state.gradient_step) == STEPS // 2
    _, weights, state = found["beneath"]
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
    # Every method does, those of the table's last column by themselves.
    rest = state.inner_state.rest
    full = lowbit.join(weights["layers"]["kernel"], rest["layers"]["kernel"])
    sizes = (np.linalg.norm(x, axis=(1, 2)) for x in (full, params["layers"]["kernel"]))
    np.testing.assert_allclose(*sizes, rtol=2e-5)

    # A restart goes on to the bit.
    states = {key: state for key, (_, _, state) in found.items()}
    weights = {key: weights for key, (_, weights, _) in found.items()}
    again = jax.device_get(restored(tmp_path, jax.device_put((weights, states))))
    chex.assert_trees_all_equal(again, (weights, states))
    chex.assert_trees_all_equal(run(*again), run(weights, states))


@pytest.mark.parametrize("name", names())
def test_what_the_table_refuses_is_refused(name):
    for wrapper in WRAPPERS:
        if not refusal(name, wrapper):
            continue
        if wrapper == "cautious_decay":
            with pytest.raises(TypeError, match="cautious_decay"):
                get(name).factory(1e-2, cautious_decay=True)
        else:
            assert name in ON_SPHERES and not hasattr(directions, name)
    assert f"| `{name}` |" in table()


@pytest.mark.parametrize("name", ["normuon", "cosmos"])
def test_eight_devices_agree_and_a_restart_is_the_same_to_the_bit(name, tmp_path):
    params = arrays()
    expected, _, _ = jax.jit(lambda p: train(name, around(name), p))(params)
    mesh = sharding.make_mesh({"data": 8})
    spread = {"distribute": sharding.over_mesh(mesh, "data")}
    tx = around(name, **spread)
    specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
    placed = jax.device_put(params, sharding.to_shardings(mesh, specs))
    state = sharding.init_state(tx, placed)
    layouts = jax.tree.map(lambda x: x.sharding, (placed, state))

    # Momenta and their codes lie as their parameters do.
    own = placed["layers"]["kernel"]
    codes = [
        x
        for x in jax.tree.leaves(state)
        if x.dtype in (jnp.int8, jnp.uint8) and x.shape == own.shape
    ]
    assert codes
    for x in codes:
        assert x.sharding.is_equivalent_to(own.sharding, x.ndim)

    run = jax.jit(lambda p, s: train(name, tx, p, s), out_shardings=(None, *layouts))
    losses, placed, state = run(placed, state)
    np.testing.assert_allclose(losses, expected, rtol=2e-3)
    again = restored(tmp_path, (placed, state))
    chex.assert_trees_all_equal(again, (placed, state))
    chex.assert_trees_all_equal(run(*again), run(placed, state))


# Wrapper -> bytes of its state for a matrix of 64x48 and a vector of 48 in float32.
SIZES = {
    "adamw": (lambda: adamw(1e-2), 8, 8),
    "small adamw": (
        lambda: optlab.small_state(adamw(1e-2)),
        2 * (1 + 4 / 48),
        2 * (1 + 4 / 48),
    ),
    "bfloat16 adamw": (
        lambda: optlab.small_state(adamw(1e-2), "bfloat16"),
        4,
        4,
    ),
    "small lion": (
        lambda: optlab.small_state(optlab.lion(1e-2), scale_dtype=jnp.float32),
        *(1 + 8 / 48, 1 + 8 / 48),
    ),
    "split adamw": (lambda: optlab.split_weights(adamw(1e-2)), 9, 9),
    "split small adamw": (
        lambda: optlab.split_weights(optlab.small_state(adamw(1e-2)), bits=16),
        *(2 + 2 * (1 + 4 / 48), 2 + 2 * (1 + 4 / 48)),
    ),
    "normuon": (lambda: optlab.normuon(1e-2), 4 + 4 / 64, 8),
    "muon_h": (lambda: optlab.muon_h(1e-2), 4 + 4 / (64 * 48), 8),
    "cautious muon": (lambda: optlab.cautious(optlab.muon(1e-2)), 4, 8),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_table_has_the_state_bytes(name):
    make, matrix, vector = SIZES[name]
    params = {"bias": jnp.ones(48), "w": jnp.ones((64, 48))}
    rows = {row.path: row for row in optlab.describe(params, make())}
    assert rows["w"].state_bytes == pytest.approx(matrix * 64 * 48)
    assert rows["bias"].state_bytes == pytest.approx(vector * 48)
