"""The schedules against optax, closed forms, and the authors' refinement."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import schedules

GOLDEN = pathlib.Path(__file__).parent / "golden"
STEPS = np.arange(0, 131)


def uba_by_the_paper(t, peak, end, phi, total):
    """Equation of the paper as printed; 0/0 at t = total if phi = 0."""
    c = 1 + np.cos(np.pi * t / total)
    return (peak - end) * 2 * c / (2 * phi + (2 - phi) * c) + end


@pytest.mark.parametrize("phi", [0.25, 0.5, 1.0, 2.0, 5.0, 10.0])
def test_uba_equals_the_printed_form(x64, phi):
    schedule = schedules.uba_schedule(0.3, 100, phi, end_value=0.01)
    t = np.arange(100)
    expected = uba_by_the_paper(t, 0.3, 0.01, phi, 100)
    np.testing.assert_allclose(schedule(t), expected, rtol=0, atol=1e-13)
    assert schedule(0) == pytest.approx(0.3, abs=1e-15)
    assert schedule(100) == 0.01
    assert schedule(10**9) == 0.01


def test_uba_with_phi_2_is_optax_cosine(x64):
    ours = schedules.uba_schedule(1.0, 100, 2.0, warmup_steps=20)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 100)
    np.testing.assert_allclose(ours(STEPS), theirs(STEPS), rtol=0, atol=1e-15)


def test_uba_with_phi_0_is_constant_for_ever():
    schedule = schedules.uba_schedule(0.3, 100, 0.0, end_value=0.1)
    np.testing.assert_allclose(schedule(STEPS), 0.3, rtol=1e-6)


def test_uba_takes_a_traced_phi():
    phis = jnp.asarray([0.0, 1.0, 3.0])
    values = jax.vmap(lambda phi: schedules.uba_schedule(1.0, 10, phi)(5))(phis)
    np.testing.assert_allclose(values, 1 / (1 + phis / 2), rtol=1e-6)


@pytest.mark.parametrize("phi", [0.25, 1.0, 2.0, 8.0])
def test_uba_mean_factor(x64, phi):
    total = 20_000
    midpoints = np.arange(total) + 0.5
    mean = np.mean(schedules.uba_schedule(1.0, total, phi)(midpoints))
    assert mean == pytest.approx(1 / (1 + np.sqrt(phi / 2)), abs=1e-9)


def test_uba_orders_by_phi():
    values = [schedules.uba_schedule(1.0, 100, phi)(50) for phi in (0.5, 1, 2, 5)]
    assert values == sorted(values, reverse=True)


def test_uba_warmup_and_end():
    schedule = schedules.uba_schedule(
        1.0, 100, 1.0, end_value=0.1, warmup_steps=10, init_value=0.2
    )
    np.testing.assert_allclose(schedule(np.arange(11)), np.linspace(0.2, 1.0, 11), 1e-6)
    assert schedule(100) == np.float32(0.1)
    assert schedules.uba_schedule(1.0, 100, warmup_steps=10)(0) == 0.0


@pytest.mark.parametrize("phases", [2, 3, 7])
def test_uba_phases_repeat_the_fall(phases):
    length, warmup = 30, 13
    one = schedules.uba_schedule(0.7, length, 1.5, end_value=0.05)
    many = schedules.uba_schedule(
        0.7,
        warmup + phases * length,
        1.5,
        end_value=0.05,
        warmup_steps=warmup,
        phases=phases,
    )
    expected = np.tile(one(np.arange(length)), phases)
    got = many(warmup + np.arange(phases * length))
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    assert many(warmup + phases * length) == np.float32(0.05)


def test_uba_phases_that_do_not_divide_keep_their_share():
    values = np.asarray(schedules.uba_schedule(1.0, 10, phases=3)(np.arange(10)))
    restarts = 1 + np.flatnonzero(np.diff(values) > 0)
    np.testing.assert_array_equal(restarts, [4, 7])


def test_linear_equals_optax():
    ours = schedules.linear_decay_schedule(
        0.5, 100, end_value=0.1, warmup_steps=20, init_value=0.2
    )
    theirs = optax.join_schedules(
        [
            optax.linear_schedule(0.2, 0.5, 20),
            optax.linear_schedule(0.5, 0.1, 80),
        ],
        [20],
    )
    np.testing.assert_allclose(ours(STEPS), theirs(STEPS), rtol=1e-6)
    assert ours(0) == np.float32(0.2)
    assert ours(100) == ours(5000) == np.float32(0.1)


@pytest.mark.parametrize("name", ["uba_schedule", "linear_decay_schedule"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_tiny_budgets(name, total, warmup):
    schedule = getattr(schedules, name)(1.0, total, warmup_steps=warmup)
    values = np.asarray(schedule(np.arange(total + 3)))
    assert np.all(np.isfinite(values))
    assert values[0] == (0.0 if warmup else 1.0)
    np.testing.assert_array_equal(values[total:], 0.0)


def refined(**kwargs):
    norms = 1 + np.random.default_rng(0).random(40)
    return schedules.refined_schedule(norms, **kwargs)


MAKERS = {
    "uba": lambda peak: schedules.uba_schedule(peak, 40, warmup_steps=4, phases=2),
    "linear": lambda peak: schedules.linear_decay_schedule(peak, 40, warmup_steps=4),
    "refined": lambda peak: refined(peak_value=peak),
}


@pytest.mark.parametrize("name", MAKERS)
def test_counts_of_every_kind_agree(name):
    schedule = MAKERS[name](0.3)
    at_7 = schedule(7)
    assert at_7.dtype == jnp.float32
    assert at_7.shape == ()
    for count in (7.0, np.int64(7), jnp.int32(7), jnp.uint32(7), jnp.bfloat16(7)):
        assert schedule(count) == at_7
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(7)), at_7, rtol=1e-6)
    counts = jnp.arange(45)
    mapped = jax.vmap(schedule)(counts)
    np.testing.assert_allclose(mapped, schedule(counts), rtol=1e-6)
    np.testing.assert_allclose(mapped[7], at_7, rtol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_float64_under_x64(x64, name):
    assert MAKERS[name](0.3)(7).dtype == jnp.float64


@pytest.mark.parametrize("name", MAKERS)
def test_peak_may_be_traced(name):
    rate = jax.jit(lambda peak, t: MAKERS[name](peak)(t))(jnp.float32(0.3), 9)
    np.testing.assert_allclose(rate, MAKERS[name](0.3)(9), rtol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_drives_optax(name):
    schedule = MAKERS[name](0.3)
    tx = optax.sgd(schedule)
    state = tx.init(jnp.zeros(()))
    for t in range(3):
        update, state = tx.update(jnp.ones(()), state)
        np.testing.assert_allclose(update, -schedule(t), rtol=1e-6)


def test_bad_arguments_are_named():
    uba, linear = schedules.uba_schedule, schedules.linear_decay_schedule
    cases = [
        ("phi", lambda: uba(1.0, 10, -1.0)),
        ("phi", lambda: uba(1.0, 10, float("nan"))),
        ("phi", lambda: uba(1.0, 10, "cosine")),
        ("phases", lambda: uba(1.0, 10, phases=0)),
        ("total_steps", lambda: uba(1.0, 0)),
        ("total_steps", lambda: uba(1.0, 10.5)),
        ("total_steps", lambda: linear(1.0, True)),
        ("warmup_steps", lambda: linear(1.0, 10, warmup_steps=-1)),
        ("warmup_steps", lambda: linear(1.0, 10, warmup_steps=11)),
        ("peak_value", lambda: linear(float("inf"), 10)),
        ("end_value", lambda: linear(1.0, 10, end_value=None)),
        ("init_value", lambda: linear(1.0, 10, init_value=float("nan"))),
        ("norm", lambda: refined(peak_value=1.0, norm="max")),
        ("filter_width", lambda: refined(peak_value=1.0, filter_width=1.5)),
        ("filter_width", lambda: refined(peak_value=1.0, filter_width=-0.1)),
        ("peak_value", lambda: refined(peak_value="high")),
    ]
    norms = [[1.0], [], [[1.0, 2.0]], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan, 2.0]]
    for bad in norms:
        cases.append(
            ("gradient_norms", lambda bad=bad: schedules.refined_schedule(bad, 1.0))
        )
    for argument, make in cases:
        with pytest.raises(ValueError, match=rf"^{argument}\b") as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_refined_equals_the_authors(x64, norm):
    with np.load(GOLDEN / f"refined_{norm}.npz") as golden:
        meta = json.loads(str(golden["__meta__"]))
        schedule = schedules.refined_schedule(
            golden["gradient_norms"],
            1.0,
            norm=meta["norm"],
            filter_width=meta["filter_width"],
        )
        expected = golden["schedule"]
    total = expected.size
    np.testing.assert_allclose(schedule(np.arange(total)), expected, rtol=0, atol=1e-9)
    assert np.max(schedule(np.arange(total))) == 1.0
    np.testing.assert_array_equal(schedule(np.array([total, 10 * total])), 0.0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("filter_width", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("total", [2, 3, 10, 57])
def test_constant_norms_give_linear_decay(x64, norm, filter_width, total):
    schedule = schedules.refined_schedule(
        np.full(total, 1e-200), 0.5, norm=norm, filter_width=filter_width
    )
    t = np.arange(total)
    np.testing.assert_allclose(schedule(t), 0.5 * (1 - t / (total - 1)), atol=1e-12)
    assert schedule(0) == 0.5
    assert schedule(total - 1) == schedule(total) == schedule(total + 5) == 0.0


@pytest.mark.parametrize("filter_width", [0.4, 1.0])
@pytest.mark.parametrize("total", [2, 3, 5, 8])
def test_refined_with_windows_as_wide_as_the_run(x64, filter_width, total):
    """A plain median of a run that is mirrored at its end and held at its start."""
    norms = 1 + np.random.default_rng(total).random(total)
    width = 2 * (int(filter_width * total) // 2) + 1
    mirror = np.concatenate([np.arange(total), np.arange(total - 2, 0, -1)])
    smooth = [
        np.median(
            [
                norms[mirror[max(i + j, 0) % len(mirror)]]
                for j in range(-(width // 2), width // 2 + 1)
            ]
        )
        for i in range(total)
    ]
    w = np.power(smooth, -2.0)
    expected = np.array([w[i] * w[i + 1 :].sum() for i in range(total)])
    schedule = schedules.refined_schedule(norms, 1.0, filter_width=filter_width)
    np.testing.assert_allclose(
        schedule(np.arange(total)), expected / expected.max(), atol=1e-14
    )


def write_metrics(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_refined_reads_a_metrics_file(x64, tmp_path):
    norms = 1 + np.random.default_rng(1).random(30)
    records = [
        {"step": 7, "grad_norm": 99.0},  # logged again after a restart
        *({"step": i + 1, "grad_norm": g, "loss": 1.0} for i, g in enumerate(norms)),
        {"step": 30, "val_loss": 2.0},
    ]
    path = write_metrics(tmp_path / "metrics.jsonl", records)
    t = np.arange(35)
    expected = schedules.refined_schedule(norms, 0.2)(t)
    for given in (path, str(path)):
        got = schedules.refined_schedule(given, 0.2)(t)
        np.testing.assert_array_equal(got, expected)


def test_refined_fills_the_steps_between_records(x64, tmp_path):
    records = [{"step": s, "grad_norm_l1": 1.0 + s} for s in (5, 10, 20)]
    path = write_metrics(tmp_path / "metrics.jsonl", records)
    got = schedules.refined_schedule(path, 1.0, norm="l1", filter_width=0.0)
    norms = np.maximum(1.0 + np.arange(1, 21), 6.0)
    expected = schedules.refined_schedule(norms, 1.0, norm="l1", filter_width=0.0)
    t = np.arange(25)
    np.testing.assert_allclose(got(t), expected(t), atol=1e-14)
    assert got(19) == 0.0
    assert got(18) > 0.0


def test_refined_says_what_the_file_lacks(tmp_path):
    path = write_metrics(tmp_path / "a.jsonl", [{"step": 1, "grad_norm": 1.0}])
    with pytest.raises(ValueError, match="grad_norm_l1"):
        schedules.refined_schedule(path, 1.0, norm="l1")
    path.write_text('{"step": 1, "grad_norm": 1.0}\n{"step": 2, "grad')
    with pytest.raises(ValueError, match="line 2"):
        schedules.refined_schedule(path, 1.0)
    path = write_metrics(path, [{"step": 1, "grad_norm": None}])
    with pytest.raises(ValueError, match="line 1"):
        schedules.refined_schedule(path, 1.0)


def test_steps_are_integers_to_the_end():
    """Phases start on their very steps, and the last step is not lost to rounding."""
    total, phases = 4_000_005, 15
    uba = schedules.uba_schedule(1.0, total, phases=phases)
    starts = np.array([total // phases * i for i in range(phases)])
    np.testing.assert_array_equal(uba(jnp.asarray(starts)), 1.0)
    assert uba(1_333_335) == 1.0
    assert float(np.max(uba(jnp.asarray(starts[1:] - 1)))) < 1e-9
    # Shares of a step, where the phases do not divide the steps.
    uneven = schedules.uba_schedule(1.0, 10, 2.0, phases=3)
    share = np.mod(np.arange(10) * 3, 10) / 10
    np.testing.assert_allclose(
        uneven(jnp.arange(10)), np.cos(np.pi * share / 2) ** 2, rtol=1e-5
    )
    np.testing.assert_allclose(uneven(3.4), np.cos(np.pi * 0.01) ** 2, rtol=1e-5)
    for total in (2**24 + 3, 2**31 - 1):
        last = {
            "linear": schedules.linear_decay_schedule(1.0, total)(total - 1),
            "uba": schedules.uba_schedule(1.0, total, 2.0)(total - 1),
        }
        np.testing.assert_allclose(last["linear"], 1 / total, rtol=1e-6)
        np.testing.assert_allclose(last["uba"], (np.pi / 2 / total) ** 2, rtol=1e-5)
        warmup = schedules.linear_decay_schedule(1.0, total, warmup_steps=total - 1)
        assert warmup(total - 1) == 1.0 and warmup(total) == 0.0


def test_a_share_of_steps_lacks_no_rounding():
    for percent in range(101):
        for count in (1, 7, 50, 100, 1000, 12345, 10**6):
            share = percent / 100
            assert schedules.share_of(share, count) == percent * count // 100
    assert schedules.share_of(1 / 3, 3) == 1 and schedules.share_of(0.2999, 10) == 2


def test_more_phases_than_steps_are_refused():
    with pytest.raises(ValueError, match="phases must be at most 8"):
        schedules.uba_schedule(1.0, 10, warmup_steps=2, phases=9)
