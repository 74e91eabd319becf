import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from experiments.schedules import make_schedule
from experiments.tasks import TASKS
from experiments.trainer import optimizer as optimizers
from experiments.trainer.faults import Faults
from experiments.trainer.state import init_state, leaf_names
from experiments.trainer.step import batches_per_step, make_train_step


def build(config, **options):
    task = TASKS[config.task.name](config)
    tx, peaks = optimizers.make_optimizer(config, task.roles)
    schedule = make_schedule(config)
    step = make_train_step(task, tx, schedule, **options)
    peaks = {name: np.float32(value) for name, value in peaks.items()}
    state = init_state(task, tx, np.uint32(config.seed))
    batches = task.train_iterator(config.seed)
    count = batches_per_step(options.get("needs", ()))
    return step, state, tuple(next(batches) for _ in range(count)), peaks


def test_two_rates_share_one_program(small):
    texts = set()
    for rate in (1e-2, 3e-3):
        config = small(
            optimizer__name="cosmos",
            optimizer__learning_rate=rate,
            optimizer__adam_learning_rate=rate / 2,
        )
        step, state, batch, peaks = build(config)
        assert set(peaks) == {"learning_rate", "adam_learning_rate"}
        texts.add(jax.jit(step).lower(state, batch, peaks).as_text())
    assert len(texts) == 1


def test_a_share_of_the_steps_warms_up_to_the_step(small):
    config = small(schedule__name="constant", train__steps=100)
    config.schedule.warmup_fraction = 0.29
    schedule = make_schedule(config)
    assert schedule(28) < 1.0 and schedule(29) == 1.0


def test_rates_are_peak_times_schedule(small):
    config = small(
        optimizer__learning_rate=0.5,
        optimizer__adam_learning_rate=0.25,
        optimizer__name="cosmos",
        schedule__warmup_fraction=0.2,
    )
    step, state, batch, peaks = build(config)
    run = jax.jit(step)
    seen = []
    for _ in range(6):
        state, metrics = run(state, batch, peaks)
        seen.append(metrics["learning_rate"])
    cosine = [(1 + np.cos(np.pi * i / 16)) / 2 for i in range(2)]
    share = np.array([0.2, 0.4, 0.6, 0.8, *cosine])
    for name, peak in (("learning_rate", 0.5), ("adam_learning_rate", 0.25)):
        rates = [float(rates[name]) for rates in seen]
        np.testing.assert_allclose(rates, peak * share, rtol=1e-6)


def test_accumulation_equals_the_whole_batch(small):
    config = small(optimizer__name="sgd", optimizer__learning_rate=0.1)
    step, state, batch, peaks = build(config)
    whole, metrics = jax.jit(step)(state, batch, peaks)
    step, *_ = build(config, accumulate=4)
    parts, metrics_parts = jax.jit(step)(state, batch, peaks)
    assert metrics["grad_norm"] > 0.1
    for name in ("loss", "grad_norm", "grad_norm_l1", "update_rms"):
        np.testing.assert_allclose(metrics[name], metrics_parts[name], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        whole.params,
        parts.params,
    )


def test_the_norm_is_clipped(small):
    config = small(
        optimizer__name="sgd",
        optimizer__learning_rate=1.0,
        optimizer__weight_decay=0,
        schedule__name="constant",
        schedule__warmup_fraction=0,
    )
    step, state, batch, peaks = build(config, clip_norm=1e-2)
    new, metrics = jax.jit(step)(state, batch, peaks)
    moved = optax.tree.norm(optax.tree.sub(new.params, state.params))
    np.testing.assert_allclose(moved, 1e-2, rtol=1e-3)
    assert metrics["grad_norm"] > 0.1
    moved_l1 = optax.tree.norm(optax.tree.sub(new.params, state.params), ord=1)
    unclipped = moved_l1 * metrics["grad_norm"] / moved
    np.testing.assert_allclose(metrics["grad_norm_l1"], unclipped, rtol=1e-3)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    np.testing.assert_allclose(metrics["update_rms"], moved / np.sqrt(size), rtol=1e-3)


def test_vectors_do_not_decay(small):
    config = small(optimizer__name="adamw", optimizer__weight_decay=0.5)
    _, state, _, _ = build(config)
    task = TASKS["language_model"](config)
    tx, _ = optimizers.make_optimizer(config, task.roles)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = tx.update(zeros, state.opt_state, state.params)
    for name, update, leaf in zip(
        leaf_names(updates),
        jax.tree.leaves(updates),
        jax.tree.leaves(state.params),
        strict=True,
    ):
        # The rate in a fresh state is 1: the step has not written its own yet.
        decay = 0.0 if name.endswith("scale") else 0.5
        np.testing.assert_allclose(update, -decay * leaf, rtol=1e-6)


class Parabola:
    """A task whose batch says whether the gradient of one leaf is finite."""

    def init(self, key):
        return {"a": jnp.ones(3), "b": jax.random.normal(key, (2,))}

    def loss(self, params, batch, key):
        del key
        a, b = jnp.sum(params["a"] ** 2), jnp.sum(params["b"] ** 2)
        bad_gradient = jnp.where(batch == 1, jnp.nan, 1.0)
        bad_loss = jnp.where(batch == 2, jnp.inf, 0.0)
        return a + bad_gradient * b + bad_loss, {}


def test_a_step_that_is_not_finite_changes_nothing():
    task = Parabola()
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=1.0)
    step = jax.jit(make_train_step(task, tx, optax.constant_schedule(1.0)))
    state, peaks = init_state(task, tx, 0), {"learning_rate": np.float32(0.1)}
    state, metrics = step(state, (0,), peaks)
    assert (int(metrics["bad_steps"]), int(metrics["bad_leaf"])) == (0, -1)
    kept = jax.tree.leaves((state.params, state.opt_state.inner_state))
    for i, (batch, leaf) in enumerate([(1, 1), (2, -1)]):
        state, metrics = step(state, (batch,), peaks)
        assert (int(metrics["bad_steps"]), int(metrics["bad_leaf"])) == (i + 1, leaf)
        assert metrics["update_rms"] == 0
    left = jax.tree.leaves((state.params, state.opt_state.inner_state))
    jax.tree.map(np.testing.assert_array_equal, kept, left)
    assert int(state.step) == 3
    state, metrics = step(state, (0,), peaks)
    assert int(metrics["bad_steps"]) == 0
    assert metrics["update_rms"] > 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_paired_gradients_are_of_two_batches_at_one_point(small, accumulate):
    config = small(
        optimizer__name="lanton",
        optimizer__kwargs__noise="paired",
        optimizer__kwargs__dual_norm="frobenius",
        train__clip_norm=0.5,
    )
    needs = optlab.registry.get("lanton").needs_for(dict(config.optimizer.kwargs))
    assert needs == ("other_grads",)
    step, state, batches, peaks = build(
        config, needs=needs, accumulate=accumulate, clip_norm=0.5
    )
    assert not np.array_equal(*batches)
    new, _ = jax.jit(step)(state, batches, peaks)
    task = TASKS["language_model"](config)
    tx, _ = optimizers.make_optimizer(config, task.roles)
    gradient = jax.jit(jax.grad(lambda p, b: task.loss(p, b, None)[0]))
    grads, others = (gradient(state.params, batch) for batch in batches)
    scale = 0.5 / optax.tree.norm(grads)
    assert scale < 1
    grads, others = optax.tree.scale(scale, grads), optax.tree.scale(scale, others)
    rates = {name: jnp.float32(rate / 2) for name, rate in peaks.items()}
    opt_state = state.opt_state._replace(
        hyperparams=state.opt_state.hyperparams | rates
    )
    update = jax.jit(lambda *args: tx.update(*args[:3], other_grads=args[3]))
    _, expected = update(grads, opt_state, state.params, others)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        new.opt_state.inner_state,
        expected.inner_state,
    )


class Quartic:
    """A separable loss, whose Hessian diagonal is exact; batch 1 makes it NaN."""

    def init(self, key):
        return {"a": jax.random.normal(key, (3, 2)), "b": jnp.ones(2)}

    def loss(self, params, batch, key):
        del key
        total = sum(jnp.sum(x**4) for x in params.values())
        return total * jnp.where(jnp.any(batch == 1), jnp.nan, 1.0), {}


def remember_hessian(learning_rate):
    """Keeps the last non-zero Hessian diagonal, and when it came."""

    def update(updates, state, params=None, *, hessian_diag):
        del params
        fresh = optlab.is_hessian_step(state["count"], 3)
        seen = jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(hessian_diag)])
        new = {
            "count": state["count"] + 1,
            "agreed": state["agreed"] & (seen.all() == fresh) & (seen.any() == fresh),
            "diag": jax.tree.map(
                lambda old, d: jnp.where(fresh, d, old), state["diag"], hessian_diag
            ),
        }
        return optax.tree.scale(-learning_rate, updates), new

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"count": jnp.int32(0), "agreed": jnp.bool_(True), "diag": zeros}

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_hessian_comes_when_the_optimizer_asks_even_after_skips(accumulate):
    task = Quartic()
    tx = optax.inject_hyperparams(remember_hessian)(learning_rate=1.0)
    step = jax.jit(
        make_train_step(
            *(task, tx, optax.constant_schedule(1.0)),
            needs=("hessian_diag",),
            hessian_interval=3,
            accumulate=accumulate,
        )
    )
    state, peaks = init_state(task, tx, 0), {"learning_rate": np.float32(0.01)}
    at = []
    for bad in (0, 1, 0, 0, 1, 1, 0, 0):
        if int(state.opt_state.count) % 3 == 0 and not bad:
            at.append(state.params)
        state, _ = step(state, (np.full(4, bad),), peaks)
    kept = state.opt_state.inner_state
    assert int(kept["count"]) == 5
    assert kept["agreed"]
    assert len(at) == 2
    jax.tree.map(
        lambda d, p: np.testing.assert_allclose(d, 12 * p**2, rtol=1e-5),
        kept["diag"],
        at[-1],
    )


def test_what_no_step_supplies_is_named():
    with pytest.raises(ValueError, match="moonlight"):
        make_train_step(Parabola(), None, None, needs=("moonlight",))


def test_every_so_many_gradients_are_spikes(small):
    config = small()
    calm, state, batch, peaks = build(config)
    faults = Faults(spike_every=3, spike_scale=50.0)
    spiked, *_ = build(config, faults=faults, clip_norm=1e9)
    calm, spiked = jax.jit(calm), jax.jit(spiked)
    for step in range(1, 5):
        found = spiked(state, batch, peaks)[1]
        state, expected = calm(state, batch, peaks)
        factor = 50.0 if step == 3 else 1.0
        for name in ("grad_norm", "grad_norm_l1"):
            np.testing.assert_allclose(found[name], factor * expected[name], rtol=1e-6)
        assert found["loss"] == expected["loss"]


def test_outliers_are_few_large_and_those_of_seed_and_step():
    grads = {"w": jnp.full((300, 400), 2.0), "b": jnp.zeros(7)}
    put = Faults(outliers=0.01, outlier_scale=30.0).of_step
    found = put(grads, jax.random.key(0), jnp.int32(0))
    added = np.asarray(found["w"]) - 2.0
    sizes = np.sort(np.abs(added[added != 0]))
    count = len(sizes)
    assert abs(count - 1200) < 5 * 1200**0.5
    assert sizes[0] >= 0.999 * 60  # 30 times the leaf's root mean square, 2
    # Pareto's tail of index 2: half of them lie above sqrt(2) times the least.
    assert np.median(sizes) == pytest.approx(60 * 2**0.5, rel=0.05)
    assert sizes[-1] > 500
    assert abs(np.sign(added).sum()) < 5 * count**0.5
    np.testing.assert_array_equal(found["b"], 0.0)
    again, other = (put(grads, jax.random.key(x), jnp.int32(9))["w"] for x in (0, 1))
    np.testing.assert_array_equal(again, found["w"])
    assert (again != other).any()


def test_a_run_that_goes_on_has_the_outliers_of_the_first_try():
    task, tx = Parabola(), optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    step = jax.jit(
        make_train_step(
            *(task, tx, optax.constant_schedule(1.0)), faults=Faults(outliers=0.5)
        )
    )
    state, peaks = init_state(task, tx, 0), {"learning_rate": np.float32(0.0)}
    norms = []
    for _ in range(6):
        after, metrics = step(state, (0,), peaks)
        assert step(state, (0,), peaks)[1]["grad_norm"] == metrics["grad_norm"]
        norms.append(float(metrics["grad_norm"]))
        state = after
    assert len(set(norms)) > 2  # the gradient itself is the same at every step


def test_the_average_of_the_weights_skips_what_training_skips():
    task = Parabola()
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    step = jax.jit(
        make_train_step(task, tx, optax.constant_schedule(1.0), ema_decay=0.75)
    )
    state = init_state(task, tx, 0, with_ema=True)
    peaks, average = {"learning_rate": np.float32(0.1)}, state.params
    for batch in (0, 1, 0):
        state, _ = step(state, (batch,), peaks)
        if batch == 0:
            average = jax.tree.map(
                lambda a, p: 0.75 * a + 0.25 * p, average, state.params
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            *(state.ema, average),
        )
