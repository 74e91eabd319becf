"""LANTON against a NumPy reference written from the equations, group by group."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from experiments.flops import count_flops
from optlab.registry import get

STEPS = 5
ROLES = optlab.default_roles(stacked=("^layers/",))
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4)},
    "embed": {"embedding": (7, 4)},
    "head": {"kernel": (4, 7)},
    "layers": {"bias": (2, 6), "kernel": (2, 4, 6)},
    "norm": {"scale": (4,)},
    "tall": {"kernel": (6, 4)},
    "temperature": (),
    "wide": {"kernel": (4, 9)},
}
RATES = {"matrix": 0.02, "embedding": 0.003, "vector": 0.01}


def trees(seed, count):
    rng = np.random.default_rng(seed)
    made = jax.tree.map(
        lambda s: rng.standard_normal((count, *s)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    # Layers that differ in their noise by orders of magnitude.
    made["wide"]["kernel"] *= 20
    made["layers"]["kernel"][:, 1] *= 0.05
    made["head"]["kernel"] *= 0.1
    made["layers"]["bias"][:, 0] *= 3
    return [jax.tree.map(lambda x, i=i: x[i], made) for i in range(count)]


def flat_layers(tree):
    """Each layer's array as it stands in the equations, and its place and group."""
    kernel = tree["conv"]["kernel"]
    yield "matrix", ("conv", "kernel", ...), kernel.reshape(18, 4), np.sqrt(4 / 2) / 9
    for i in range(2):
        layer = tree["layers"]["kernel"][i]
        yield "matrix", ("layers", "kernel", i), layer, np.sqrt(6 / 4)
    yield "matrix", ("tall", "kernel", ...), tree["tall"]["kernel"], np.sqrt(4 / 6)
    yield "matrix", ("wide", "kernel", ...), tree["wide"]["kernel"], np.sqrt(9 / 4)
    yield "embedding", ("embed", "embedding", ...), tree["embed"]["embedding"], 0.5
    yield "embedding", ("head", "kernel", ...), tree["head"]["kernel"], 0.5
    for i in range(2):
        layer = tree["layers"]["bias"][i]
        yield "vector", ("layers", "bias", i), layer, np.sqrt(6)
    yield "vector", ("norm", "scale", ...), tree["norm"]["scale"], 2.0
    yield "vector", ("temperature", ...), np.reshape(tree["temperature"], 1), 1.0


def newton_schulz(x, eps=1e-7):
    x = x.T if x.shape[0] > x.shape[1] else x
    y = x / (np.linalg.norm(x) + eps)
    for _ in range(5):
        a = y @ y.T
        y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
    return x, y


def lmo(group, b):
    if group == "matrix":
        polar = newton_schulz(b)[1]
        return polar.T if b.shape[0] > b.shape[1] else polar
    if group == "embedding":
        return np.sign(b)
    return b / np.linalg.norm(b)


def dual(group, d, method):
    if group == "embedding":
        return np.abs(d).sum()
    if group == "vector" or method == "frobenius":
        return np.sqrt((d**2).sum())
    if method == "exact":
        return np.linalg.svd(d, compute_uv=False).sum()
    x, polar = newton_schulz(d, eps=0)
    return (x * polar).sum()


def reference(gradients, others, *, alpha, p, method, interval, b1=0.95, b2=0.9):
    """Directions with their rates and the noise, step by step, layer by layer."""
    count = len(list(flat_layers(gradients[0])))
    momentum, noise = [0.0] * count, np.zeros(count)
    previous = None
    for t, gradient in enumerate(gradients, 1):
        layers = list(flat_layers(gradient))
        compared = list(flat_layers(others[t - 1])) if others else previous
        first = 1 if others else 2
        if t >= first and (t - first) % interval == 0:
            for i, ((group, _, g, scale), (_, _, o, _)) in enumerate(
                zip(layers, compared, strict=True)
            ):
                norm = scale * dual(group, g - o, method)
                noise[i] = b2 * noise[i] + (1 - b2) * norm**2
        level = alpha / np.sqrt(alpha**2 + noise)
        groups = np.array([group for group, *_ in layers])
        step = {}
        for i, (group, place, g, scale) in enumerate(layers):
            momentum[i] = b1 * momentum[i] + (1 - b1) * g
            rate = RATES[group] * (level[i] / level[groups == group].max()) ** p
            step[place] = rate * scale * lmo(group, momentum[i])
        previous = layers
        yield step, {place: noise[i] for i, (_, place, _, _) in enumerate(layers)}


def pick(tree, place):
    *keys, index = place
    for key in keys:
        tree = tree[key]
    return np.asarray(tree)[index]


def make(**kwargs):
    return optlab.lanton(
        RATES["matrix"],
        embedding_learning_rate=RATES["embedding"],
        vector_learning_rate=RATES["vector"],
        roles=ROLES,
        **kwargs,
    )


CASES = {
    "consecutive": dict(alpha=2.0, dual_norm="newton_schulz"),
    "paired": dict(alpha=0.5, dual_norm="newton_schulz", noise="paired"),
    "exact": dict(alpha=1.0, dual_norm="exact", exponent=1.0),
    "frobenius": dict(alpha=1.0, dual_norm="frobenius", noise_interval=2),
    "interval": dict(alpha=1.0, noise="paired", dual_norm="exact", noise_interval=3),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_equations_in_every_group(case, x64):
    kwargs = CASES[case]
    gradients = trees(0, STEPS)
    others = trees(1, STEPS) if kwargs.get("noise") == "paired" else None
    tx = make(embedding_scale=0.5, weight_decay=0.1, **kwargs)
    params = jax.tree.map(jnp.asarray, trees(2, 1)[0])
    state, update = tx.init(params), jax.jit(tx.update)
    expected = reference(
        *(gradients, others),
        alpha=kwargs["alpha"],
        p=kwargs.get("exponent", 0.5),
        method=kwargs["dual_norm"],
        interval=kwargs.get("noise_interval", 1),
    )
    for t, (step, noise) in enumerate(expected):
        extra = {"other_grads": others[t]} if others else {}
        updates, state = update(gradients[t], state, params, **extra)
        inner = {k: s.inner_state[0] for k, s in state.inner_states.items()}
        for group, place, _, _ in flat_layers(gradients[t]):
            decay = RATES[group] * 0.1 * pick(params, place)
            np.testing.assert_allclose(
                np.ravel(-pick(updates, place) - decay),
                np.ravel(step[place]),
                rtol=1e-10,
                atol=1e-13,
                err_msg=f"{place} at step {t}",
            )
            np.testing.assert_allclose(
                pick(inner[group].noise, place), noise[place], rtol=1e-10
            )
    rates = [np.abs(v).max() for v in step.values()]
    assert max(rates) > 3 * min(rates)


def run(tx, gradients, **kwargs):
    params = jax.tree.map(lambda g: jnp.zeros_like(jnp.asarray(g)), gradients[0])
    state, update, seen = tx.init(params), jax.jit(tx.update), []
    for t, g in enumerate(gradients):
        extra = {k: v[t] for k, v in kwargs.items()}
        updates, state = update(jax.tree.map(jnp.asarray, g), state, params, **extra)
        seen.append(updates)
    return seen, state


def test_without_a_noise_level_it_is_the_lmo_step(x64):
    gradients = trees(3, 3)
    roles = dict(roles=ROLES)
    plain, _ = run(optlab.scale_by_lmo(**roles), gradients)
    for alpha in (float("inf"), 1e30):
        adaptive, state = run(
            optlab.noise_adaptive(optlab.scale_by_lmo(**roles), alpha=alpha, **roles),
            gradients,
        )
        assert all(np.all(h > 0) for h in jax.tree.leaves(state.noise))
        # Two programs, which may round apart.
        chex.assert_trees_all_close(adaptive, plain, rtol=1e-12)


def test_at_level_zero_rates_go_with_the_fourth_root_of_the_noise(x64):
    gradients = trees(4, 3)
    plain, _ = run(optlab.scale_by_lmo(roles=ROLES), gradients)
    adaptive, state = run(optlab.scale_by_lanton(alpha=1e-12, roles=ROLES), gradients)
    lowest = {}
    for group, place, _, _ in flat_layers(gradients[0]):
        h = pick(state.noise, place)
        lowest[group] = min(lowest.get(group, np.inf), h)
    for group, place, _, _ in flat_layers(gradients[0]):
        rate = (lowest[group] / pick(state.noise, place)) ** 0.25
        np.testing.assert_allclose(
            pick(adaptive[-1], place), rate * pick(plain[-1], place), rtol=1e-10
        )


def test_stacked_layers_equal_separate_ones(x64):
    rng = np.random.default_rng(5)
    sizes = np.array([1.0, 0.1, 7.0])
    kernel = rng.standard_normal((4, 3, 4, 6)) * sizes[:, None, None]
    bias = rng.standard_normal((4, 3, 6)) * sizes[:, None]
    stacked, _ = run(
        make(),
        [
            {"layers": {"kernel": k, "bias": b}}
            for k, b in zip(kernel, bias, strict=True)
        ],
    )
    apart, _ = run(
        make(),
        [
            {
                f"layer{i}": {"kernel": kernel[t, i], "bias": bias[t, i]}
                for i in range(3)
            }
            for t in range(4)
        ],
    )
    for one, three in zip(stacked, apart, strict=True):
        for name in ("kernel", "bias"):
            expected = np.stack([three[f"layer{i}"][name] for i in range(3)])
            np.testing.assert_allclose(one["layers"][name], expected, rtol=1e-11)


def test_the_group_holds_the_leaves_that_are_present():
    """Under masks, the noise of a leaf that belongs to others counts for nothing."""
    gradients = trees(6, 3)
    others = trees(7, 3)
    keep = jax.tree.map(lambda _: True, gradients[0])
    keep["layers"]["kernel"] = keep["temperature"] = False

    def inner():
        return make(alpha=0.1, noise="paired")

    def without(tree):
        layers = {"bias": tree["layers"]["bias"]}
        rest = {k: v for k, v in tree.items() if k != "temperature"}
        return {**rest, "layers": layers}

    masked, _ = run(
        optax.masked(inner(), keep, mask_compatible_extra_args=True),
        gradients,
        other_grads=others,
    )
    alone, _ = run(
        inner(),
        [without(g) for g in gradients],
        other_grads=[without(g) for g in others],
    )
    whole, _ = run(inner(), gradients, other_grads=others)
    for one, other in zip(masked, alone, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            without(one),
            other,
        )
    # The quietest layer of all is among the hidden ones.
    tall = [np.abs(u[-1]["tall"]["kernel"]).max() for u in (masked, whole)]
    assert tall[0] > 2 * tall[1]


def test_wraps_any_direction_and_stands_behind_any_other():
    """What no paper has: adaptive rates over ROOT-like steps, clipped gradients."""
    gradients = trees(8, 3)
    clipped = optax.chain(optax.clip(0.5), make())
    over_trace = optlab.noise_adaptive(optax.trace(0.9), alpha=0.1, roles=ROLES)
    over_cosmos = optlab.by_role(
        optlab.noise_adaptive(
            optlab.scale_by_cosmos(rank=2, roles=ROLES), alpha=0.1, roles=ROLES
        ),
        optax.scale_by_adam(),
        ROLES,
    )
    for tx in (clipped, over_trace, over_cosmos):
        updates, _ = run(tx, gradients)
        assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    plain, _ = run(
        optlab.scale_by_cosmos(rank=2), [{"w": g["tall"]["kernel"]} for g in gradients]
    )
    ratio = updates[-1]["tall"]["kernel"] / plain[-1]["w"]
    np.testing.assert_allclose(ratio, np.full((6, 4), ratio[0, 0]), rtol=1e-4)
    assert 0 < ratio[0, 0] < 1


def test_a_function_may_be_the_norm_of_the_hidden_matrices(x64):
    gradients = [{"wide": g["wide"], "tall": g["tall"]} for g in trees(9, 3)]

    def nuclear(x):
        return jnp.sum(jnp.linalg.svd(x, compute_uv=False), -1)

    one, _ = run(make(dual_norm=nuclear), gradients)
    other, _ = run(make(dual_norm="exact"), gradients)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def steady_flops(tx, params):
    arguments = params, jax.eval_shape(tx.init, params), params
    return [
        count_flops(tx.update, *arguments, cheapest_branch=cheapest).total
        for cheapest in (True, False)
    ]


def test_noise_costs_a_tenth_of_scions_step_or_as_much_again():
    """A layer of LLaMA-130M, counted from the jaxpr."""
    shapes = {"query": (768, 768), "up": (768, 2048), "down": (2048, 768)}
    params = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    scion = steady_flops(optlab.scion(1e-2), params)[0]

    def share(**kwargs):
        usual, measuring = steady_flops(optlab.lanton(1e-2, **kwargs), params)
        interval = kwargs.get("noise_interval", 1)
        return ((interval - 1) * usual + measuring) / interval / scion

    assert share(noise_interval=10) < 1.1
    assert share(dual_norm="frobenius") < 1.01
    assert share(dual_norm="lanczos") < 1.025  # of what blocks leave of Scion's
    assert 1.9 < share() < 2.01


def test_lanczos_gives_about_the_rates_of_the_exact_norm():
    gradients = trees(11, 3)
    exact, _ = run(make(dual_norm="exact", alpha=0.1), gradients)
    estimated, _ = run(make(dual_norm="lanczos", alpha=0.1), gradients)
    # The norm's error is halved by the exponent.
    for one, other in zip(*map(jax.tree.leaves, (exact, estimated)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=1e-12)


@pytest.mark.parametrize("name", ["lanton", "root", "scion"])
def test_products_are_made_in_the_dtype_that_is_asked_for(name):
    params = {"w": jnp.ones((8, 16))}
    tx = get(name).factory(1e-2, ns_dtype=jnp.bfloat16)
    lowered = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products and all(line.count("xbf16>") == 2 for line in products)


@pytest.mark.parametrize("noise", ["consecutive", "paired"])
def test_the_noise_stays_finite_at_any_size(noise):
    tx = make(noise=noise)
    gradients = [
        jax.tree.map(lambda g, s=s: jnp.asarray(s * g, jnp.float32), g)
        for s, g in zip((1e20, 1e20, 0.0, 1e-20, 1.0), trees(10, 5), strict=True)
    ]
    extra = {"other_grads": gradients[1:] + gradients[:1]} if noise == "paired" else {}
    updates, state = run(tx, gradients, **extra)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    assert all(np.any(u) for u in jax.tree.leaves(updates[-1]))


def test_zero_gradients_move_nothing():
    zeros = [jax.tree.map(np.zeros_like, g) for g in trees(0, 2)]
    updates, _ = run(make(), zeros)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))


def test_the_registry_knows_what_the_paired_noise_needs():
    entry = get("lanton")
    assert entry.needs == entry.needs_for({"noise": "consecutive"}) == ()
    assert entry.needs_for({"noise": "paired"}) == ("other_grads",)
    params = {"w": jnp.ones((4, 3))}
    tx = optlab.lanton(1e-2, noise="paired")
    with pytest.raises(ValueError, match="other_grads"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"exponent": -1.0},
        {"noise": "both"},
        {"dual_norm": "spectral"},
        {"noise_interval": 0},
        {"embedding_scale": -1.0},
        {"embedding_learning_rate": -1.0},
        {"vector_learning_rate": -1.0},
    ],
)
def test_an_argument_out_of_range_is_named(kwargs):
    name = next(iter(kwargs))
    match = "learning_rate" if name.endswith("learning_rate") else name
    with pytest.raises(ValueError, match=match):
        optlab.lanton(**{"learning_rate": 1e-2, **kwargs})
