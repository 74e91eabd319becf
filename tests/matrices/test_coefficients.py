"""The presets and the fit, against linear programs, matrices and published numbers."""

import json

import ml_dtypes
import numpy as np
import pytest
from scipy.optimize import linprog

from optlab.matrices.coefficients import presets as C
from optlab.matrices.coefficients.fit import fit, mixture
from optlab.matrices.coefficients.quintics import apply, iterate_bounds, minimax

LLAMA_130M = [(768, 768), (768, 2048), (2048, 768)]
RESNET_20 = [(27, 16), (144, 16), (144, 32), (288, 32), (288, 64), (576, 64)]
SHAPES = LLAMA_130M + RESNET_20
FIT_KINDS = [(5, False), (5, True), (4, True)]
NORMALIZED_KINDS = [(*kind, "frobenius") for kind in FIT_KINDS]
NORMALIZED_KINDS += [(*kind, "schatten4") for kind in FIT_KINDS[1:]]


def values(table, s, dtype=np.float64):
    """Every iterate of `s`, with the roundings of a matrix code in `dtype`."""

    def rounded(v):
        return np.asarray(v, dtype).astype(np.promote_types(np.float32, dtype))

    x, iterates = rounded(s), []
    for triple in table:
        a, b, c = map(rounded, triple)
        gram = rounded(x * x)
        poly = rounded(rounded(b * gram) + rounded(c * rounded(gram * gram)))
        x = rounded(rounded(a * x) + rounded(poly * x))
        iterates.append(x.astype(np.float64))
    return np.array(iterates)


def as_table(coeffs, steps):
    return np.broadcast_to(np.asarray(coeffs), (steps, 3))


# ---- Presets and arguments -----------------------------------------------------------


def test_resolve_takes_a_triple_a_table_and_names():
    triple, table = (1.5, -0.5, 0.1), [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]
    assert C.resolve_coefficients(triple, 3) == (triple,) * 3
    assert C.resolve_coefficients(np.array(table), 2) == tuple(table)
    assert C.resolve_coefficients("muon", 5) == (C.MUON,) * 5
    assert C.resolve_coefficients("dion", 5) == C.DION
    for name in C.PRESETS:
        for steps in (5,) if name == "dion" else (1, 4, 9):
            resolved = C.resolve_coefficients(name, steps)
            assert np.shape(resolved) == (steps, 3)
            assert isinstance(resolved[0][0], float)


@pytest.mark.parametrize(
    "coeffs",
    ["mouon", (1.0, 2.0), [(1, 2, 3)] * 4, "", 3.0, (1, 2, np.nan), [(1, 2), (3,)], {}],
)
def test_resolve_names_the_argument(coeffs):
    with pytest.raises(ValueError, match="coeffs"):
        C.resolve_coefficients(coeffs, 5)


def test_wrong_arguments_raise():
    for shape in ((3,), (0, 4), (2, 3, 4), (2.5, 4), 7, None):
        with pytest.raises(ValueError, match="shape"):
            C.fit_coefficients(shape)
    with pytest.raises(ValueError, match="steps"):
        C.fit_coefficients((4, 4), steps=0)
    for wrong in ([], [[]], [-1.0, 1.0], [np.nan], [np.inf, 1], [0.0, 0.0], 1.0, "ab"):
        with pytest.raises(ValueError, match="singular_values"):
            C.fit_coefficients((4, 4), singular_values=wrong)


def test_polar_express_is_the_published_table():
    # Amsel et al., listing of the degree-5 method; all but the last divided by 1.01.
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    ]
    safe = np.array(published) / 1.01 ** np.array([1, 3, 5])
    ours = C.resolve_coefficients("polar_express", 9)
    np.testing.assert_allclose(ours[:7], safe, rtol=2e-7)
    np.testing.assert_array_equal(ours[7:], [(1.875, -1.25, 0.375)] * 2)


@pytest.mark.parametrize(("lower", "upper"), [(1e-3, 1.0), (0.05, 1.9), (0.6, 1.4)])
def test_minimax_is_the_solution_of_the_linear_program(lower, upper):
    s = np.linspace(lower, upper, 4001)
    basis = np.stack([s, s**3, s**5], 1)
    ones = np.ones((len(s), 1))
    program = linprog(
        [0, 0, 0, 1],
        A_ub=np.block([[basis, -ones], [-basis, -ones]]),
        b_ub=np.concatenate([np.ones(len(s)), -np.ones(len(s))]),
        bounds=[(None, None)] * 3 + [(0, None)],
    )
    triple, deviation = minimax(lower, upper)
    assert np.abs(basis @ triple - 1).max() == pytest.approx(deviation, rel=1e-9)
    assert deviation == pytest.approx(program.fun, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_chebyshev_takes_its_interval_to_within_five_per_cent(steps):
    table = C.resolve_coefficients("chebyshev", steps)
    # Deflation by 1.05 in, and by 1.01 at each of the later steps.
    last = values(table, np.linspace(0, 1.05, 100_001))[-1]
    top = 1.05 * 1.01
    assert last.max() <= top
    above = last[np.argmax(last >= 0.9) :]
    assert above.min() >= 0.9


# ---- Bounds --------------------------------------------------------------------------


def test_iterate_bounds_are_those_of_a_fine_grid():
    rng = np.random.default_rng(0)
    s = np.linspace(0, 1.05, 400_001)
    for _ in range(5):
        table = np.array([(2.5, -2.5, 0.9)] * 3) * rng.uniform(0.8, 1.2, (3, 3))
        iterates = values(table, s)
        expected = np.stack([iterates.min(1), iterates.max(1)], 1)
        np.testing.assert_allclose(iterate_bounds(table), expected, atol=1e-6)


@pytest.mark.parametrize(("steps", "per_step", "normalize"), NORMALIZED_KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 9), (2, 3), (1024, 1024), (301, 4500)])
def test_every_iterate_keeps_the_bounds(shape, steps, per_step, normalize):
    fitted = C.fit_coefficients(shape, steps, per_step=per_step, normalize=normalize)
    table = as_table(fitted, steps)
    assert (np.round(table, 4) == table).all()
    s = np.linspace(0, 1.05, 20_001)
    exact = values(table, s)
    assert exact.min() >= 0
    assert exact.max() <= 1.5
    assert exact[-1, s >= 0.1].min() >= 0.49
    single = values(table, s, np.float32)
    np.testing.assert_allclose(single, exact, atol=2e-4)
    # No sign is lost and nothing grows in bfloat16 either, a rounding above one.
    half = values(table, s[s <= 1.004], ml_dtypes.bfloat16)
    assert half.min() >= 0
    assert half.max() <= 1.55
    assert half[-1, s[s <= 1.004] >= 0.1].min() >= 0.4


def test_presets_stay_bounded():
    for name, top in (("muon", 1.05), ("chebyshev", 1.05), ("polar_express", 1.01)):
        for steps in (1, 4, 5, 8):
            table = C.resolve_coefficients(name, steps)
            low, high = iterate_bounds(table, top).T
            assert low.min() >= 0
            assert high.max() <= 2.02


# ---- The fit -------------------------------------------------------------------------


def test_gaussian_spectrum_is_that_of_a_gaussian_matrix():
    rng = np.random.default_rng(1)
    for m, n in ((300, 300), (200, 500)):
        s = np.linalg.svd(rng.standard_normal((m, n)), compute_uv=False)
        expected = s / np.linalg.norm(s)
        weight, ours = mixture(m, n)[1]
        assert weight == 0.75
        assert np.linalg.norm(ours) == pytest.approx(1)
        assert np.abs(ours - expected).max() < 0.03 * expected.max()


@pytest.mark.parametrize("shape", SHAPES)
def test_fits_beat_muon_on_the_mixture(shape):
    muon = C.mixture_error("muon", shape)
    shared, stepped, four = (
        C.mixture_error(C.fit_coefficients(shape, k, per_step=p), shape, k)
        for k, p in FIT_KINDS
    )
    assert shared < 0.6 * muon
    assert stepped < 0.21 * muon
    assert four < 0.72 * muon
    assert stepped <= shared + 1e-6


@pytest.mark.parametrize(("shape", "share"), [((768, 768), 0.5), ((768, 2048), 0.05)])
def test_four_steps_beat_muons_five(shape, share):
    fitted = C.fit_coefficients(shape, 4, per_step=True, normalize="schatten4")
    error = C.mixture_error(fitted, shape, 4, "schatten4")
    assert error < share * C.mixture_error("muon", shape)
    assert error < C.mixture_error(
        C.fit_coefficients(shape, 4, per_step=True), shape, 4
    )


@pytest.mark.parametrize("shape", [*LLAMA_130M[:2], *RESNET_20])
def test_fits_beat_muon_on_matrices(shape):
    """The error of the orthogonalization itself, matrices against their SVD."""
    rng = np.random.default_rng(2)
    m, n = min(shape), max(shape)
    gaussian = rng.standard_normal((m, n), dtype=np.float32)
    u, _, vt = np.linalg.svd(gaussian, full_matrices=False)
    power = (u * np.arange(1, m + 1, dtype=np.float32) ** -0.75) @ vt

    def error(x, table):
        x = x / np.linalg.norm(x)
        for a, b, c in table.astype(np.float32):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return np.sum((x - u @ vt) ** 2) / m

    def mean_error(coeffs):
        table = as_table(coeffs, 5)
        return 0.75 * error(gaussian, table) + 0.25 * error(power, table)

    muon = mean_error(C.MUON)
    shared = mean_error(C.fit_coefficients(shape))
    assert shared < muon
    assert mean_error(C.fit_coefficients(shape, per_step=True)) < muon
    # Small matrices scatter about the quantiles more than large ones.
    rel = 0.1 if m > 100 else 0.5
    assert muon == pytest.approx(C.mixture_error("muon", shape), rel=rel)


def test_no_triple_nearby_is_feasible_and_better():
    shape = (768, 2048)
    best = np.array(C.fit_coefficients(shape))
    error = C.mixture_error(best, shape)
    for scale in (0.3, 0.03, 0.003):
        offsets = np.stack(np.meshgrid(*[np.linspace(-scale, scale, 7)] * 3), -1)
        for offset in offsets.reshape(-1, 3):
            triple = best + offset
            if iterate_bounds(as_table(triple, 5), margin=1.01).max() <= 1.49:
                assert C.mixture_error(triple, shape) > error - 1e-5


def test_the_recipe_comes_near_the_authors():
    theirs = (3.1943, -3.8221, 1.5322)
    shape = (2048, 16384)
    ours = C.fit_coefficients(shape)
    np.testing.assert_allclose(ours, theirs, atol=0.2)
    assert C.mixture_error(ours, shape) < C.mixture_error(theirs, shape) < 0.0125


def test_tall_is_wide_and_the_result_is_remembered():
    wide = C.fit_coefficients((37, 91), per_step=True)
    assert C.fit_coefficients((91, 37), per_step=True) is wide
    again = fit(mixture(37, 91), 5, True)
    np.testing.assert_array_equal(wide, again)


@pytest.mark.parametrize("size", [1, 50])
def test_one_singular_value(size):
    for steps, per_step in FIT_KINDS:
        table = as_table(C.fit_coefficients((1, size), steps, per_step=per_step), steps)
        assert apply(table, 1.0) == pytest.approx(1, abs=1e-3)


def test_measured_singular_values_are_fitted():
    rng = np.random.default_rng(3)
    measured = [np.geomspace(1, 0.02, 64) * rng.uniform(1, 100) for _ in range(3)]

    def error(table):
        s = np.sort(measured[0]) / np.linalg.norm(measured[0])
        return np.mean((apply(as_table(table, 5), s) - 1) ** 2)

    ours = C.fit_coefficients((64, 64), singular_values=measured)
    assert error(ours) < 0.5 * error(C.fit_coefficients((64, 64)))
    # Scale, order and repetition change nothing.
    again = C.fit_coefficients((64, 64), singular_values=measured[0][::-1] * 1e-30)
    np.testing.assert_allclose(again, ours, atol=2e-3)
    low_rank = np.r_[np.ones(3), np.zeros(13)]
    fitted = C.fit_coefficients((16, 16), singular_values=low_rank, per_step=True)
    assert apply(fitted, 3**-0.5) == pytest.approx(1, abs=1e-3)


def test_the_committed_table_is_what_the_fit_gives():
    table = json.loads(C._TABLE.read_text())
    assert len(table) >= 125
    for m, n in ((32, 144), (768, 768), (2048, 5461)):
        for steps, per_step, normalize in NORMALIZED_KINDS:
            stored = np.array(table[C._key(m, n, steps, per_step, normalize)])
            ours = fit(mixture(m, n, normalize), steps, per_step)
            np.testing.assert_array_equal(ours, stored)
