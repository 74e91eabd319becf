"""The fit of orthogonalization's coefficients to spectra: SQP under exact bounds.

The problem is stated in `optlab.coefficients`; here are the spectra and the solver.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize

from optlab.quintics import (
    NEWTON_SCHULZ,
    POWERS,
    TOP,
    apply,
    composition,
    deflated,
    iterate_bounds,
    quintic,
    widest,
)

# The constraints: rounding between steps, the iterates' bound, the last one's floor.
_MARGIN, _UPPER = 1.02, 1.5
_FLOOR, _FLOOR_FROM = 0.5, 0.1
# The least p(s) / s over a: what bfloat16 leaves of a difference of larger terms.
_CUSHION = 0.03
# How much tighter they are held, so that rounding to four decimals keeps them.
_SLACKS, _DIGITS = (0.01, 0.03, 0.1), 4
# Values kept of the spectra together.
_POINTS = 192
# The starts per step: lower end at most, share of an interval that is passed over;
# and one for all steps, far inside the bounds.
_EASY, _START_CUSHION = 0.1, 0.04
_MILD = (2.5, -2.5, 1.0)
# Where an intermediate iterate peaks: the fit leaves that free, so it is chosen.
_PEAK = 1.25

Spectra = list[tuple[float, np.ndarray]]


# What a matrix is divided by, and the order of that norm of its singular values.
NORMALIZATIONS = {"frobenius": 2, "schatten4": 4}


def mixture(m: int, n: int, normalize: str = "frobenius") -> Spectra:
    """The weighted spectra of the objective, descending and of unit norm."""
    spectra = [(0.25, np.arange(1, m + 1.0) ** -0.75), (0.75, _gaussian(m, n))]
    return [(weight, s / _norm(s, normalize)) for weight, s in spectra]


def _gaussian(m: int, n: int) -> np.ndarray:
    """Marchenko-Pastur quantiles of the singular values of an `m <= n` matrix."""
    # Eigenvalues 1 + y - 2 sqrt(y) cos(phi): in phi the density is smooth.
    y = m / n
    phi = (np.arange(1 << 14) + 0.5) * np.pi / (1 << 14)
    density = np.sin(phi) ** 2 / (1 + y - 2 * np.sqrt(y) * np.cos(phi))
    edges = np.linspace(0, np.pi, len(phi) + 1)
    mass = np.concatenate([[0], np.cumsum(density)])
    ranks = (np.arange(m)[::-1] + 0.5) / m
    quantiles = np.interp(ranks, mass / mass[-1], edges)
    return np.sqrt(1 + y - 2 * np.sqrt(y) * np.cos(quantiles))


def measured(
    singular_values: Sequence | np.ndarray, normalize: str = "frobenius"
) -> Spectra:
    """Checks and normalises measured singular values; each array weighs the same."""
    try:
        arrays = (
            [np.asarray(singular_values, np.float64)]
            if np.ndim(singular_values[0]) == 0
            else [np.asarray(s, np.float64) for s in singular_values]
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError("singular_values must be one or more 1-D arrays") from error
    for s in arrays:
        if s.ndim != 1 or not s.size:
            raise ValueError(f"singular_values must be 1-D, not empty, got {s.shape}")
        if not np.isfinite(s).all() or (s < 0).any() or not s.any():
            raise ValueError("singular_values must be finite, >= 0 and not all zero")
    arrays = [np.sort(s)[::-1] / s.max() for s in arrays]
    return [(1 / len(arrays), s / _norm(s, normalize)) for s in arrays]


def _norm(s: np.ndarray, normalize: str) -> np.floating:
    order = NORMALIZATIONS[normalize]
    return np.linalg.norm(s, None if order == 2 else order)


def _thinned(spectra: Spectra) -> tuple[np.ndarray, np.ndarray]:
    """A bounded number of values, their weights: the head dense, the rest evenly."""
    values, weights = [], []
    count = max(8, _POINTS // len(spectra))
    for weight, s in spectra:
        m = len(s)
        ranks = np.concatenate(
            [np.geomspace(1, m, count // 4), np.linspace(1, m, count - count // 4)]
        )
        ranks = (
            np.unique(np.round(ranks).astype(int)) if m > count else np.arange(m) + 1
        )
        edges = np.concatenate([[0.5], (ranks[1:] + ranks[:-1]) / 2, [m + 0.5]])
        values.append(s[ranks - 1])
        weights.append(weight * np.diff(edges) / m)
    return np.concatenate(values), np.concatenate(weights)


def fit(spectra: Spectra, steps: int, per_step: bool) -> np.ndarray:
    """Fits `steps` triples, all the same unless `per_step`, to weighted spectra.

    Args:
      spectra: pairs of a weight and a spectrum of unit norm, descending.
      steps: number of steps `K`.
      per_step: a triple for each step.

    Returns:
      Array of shape `(steps, 3)`, rounded, within the bounds.
    """
    s, weights = _thinned(spectra)
    with np.errstate(all="ignore"):
        if per_step:
            lowest = min(float(s.min()), _EASY)
            starts = [
                composition(max(low, lowest), steps, _START_CUSHION)
                for low in (widest(steps), widest(steps) / 2)
            ]
            starts = [_balanced(deflated(x, TOP * _MARGIN)) for x in starts]
            safe = np.round(starts[0], _DIGITS)
        else:
            safe = np.tile(NEWTON_SCHULZ, (steps, 1))
            starts = [_scan(s, weights, steps), np.tile(_MILD, (steps, 1))]
        fits = [_bounded_fit(start, (s, weights), per_step) for start in starts]
    fits = [table for table in fits if table is not None]
    return min(fits, key=lambda t: weights @ (apply(t, s) - 1) ** 2, default=safe)


def _bounded_fit(start, spectrum, per_step: bool) -> np.ndarray | None:
    """Optimises until the rounded result keeps the bounds, with more and more slack."""
    for slack in _SLACKS:
        table = _optimum(start, spectrum, slack, per_step)
        table = np.round(_balanced(table) if per_step else table, _DIGITS)
        bounds = iterate_bounds(table, margin=_MARGIN)
        final = _extremes(table)[0][-1]
        if bounds.min() >= 0 and bounds.max() <= _UPPER and final.min() >= _FLOOR:
            return table
    return None


def _scan(s: np.ndarray, weights: np.ndarray, steps: int) -> np.ndarray:
    """The best feasible triple of a coarse grid, to start from."""
    axes = np.linspace(1.5, 4.5, 13), np.linspace(-8, -0.5, 31), np.linspace(0.1, 5, 21)
    triples = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    a, b, c = triples.T
    triples = triples[b * b < 4 * (1 - 2 * _CUSHION) * a * c]
    few = np.linspace(0, len(s) - 1, min(len(s), 48)).astype(int)
    points = np.concatenate([s[few], np.linspace(0.04, TOP, 26)])
    x = np.repeat(points[None], len(triples), 0)
    feasible = np.ones(len(triples), bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            x = quintic(triples.T[..., None], x)
            feasible &= x.max(1) <= _UPPER - 0.05
        error = (x[:, : len(few)] - 1) ** 2 @ weights[few]
    return np.tile(triples[np.where(feasible, error, np.inf).argmin()], (steps, 1))


def _optimum(start, spectrum, slack: float, per_step: bool) -> np.ndarray:
    """Sequential quadratic programming, preconditioned by the Gauss-Newton matrix."""
    (s, weights), steps = spectrum, len(start)
    if per_step:
        # s -> k s between two steps changes nothing, so that all leading coefficients
        # but the last stay where they are.
        free = np.ones((steps, 3), bool)
        free[:-1, 0] = False
        spread = np.eye(3 * steps)[:, free.ravel()]
    else:
        spread = np.tile(np.eye(3), (steps, 1))
    scale = np.sqrt(weights)

    x, dx = _iterates(start, s)
    jac = scale[:, None] * (dx @ spread)
    gram = jac.T @ jac
    damping = 1e-6 * np.trace(gram) / len(gram) + 1e-12
    change = spread @ np.linalg.inv(
        np.linalg.cholesky(gram + damping * np.eye(len(gram))).T
    )
    unit = max(float(weights @ (x - 1) ** 2), 1e-6)

    def table(u):
        return start + (change @ u).reshape(steps, 3)

    def objective(u):
        x, dx = _iterates(table(u), s)
        gradient = 2 * (weights * (x - 1)) @ dx @ change
        return weights @ (x - 1) ** 2 / unit, gradient / unit

    @lru_cache(maxsize=1)  # values and slopes are asked for one after the other
    def constraints(raw):
        triples = table(np.frombuffer(raw))
        x, dx = _extremes(triples)
        # Between the steps the scale is free, unless they share their triple.
        upper = slice(-1, None) if per_step else slice(None)
        # p(s) / s >= _CUSHION a, and so p >= 0.
        kept, (a, b, c) = 1 - _CUSHION, triples.T
        rows = np.zeros((steps, steps, 3))
        rows[np.arange(steps), np.arange(steps)] = np.stack(
            [4 * kept * c, -2 * b, 4 * kept * a], 1
        )
        values = [_UPPER - slack - y for y in x[upper]]
        slopes = [-dy for dy in dx[upper]]
        values += [x[-1] - _FLOOR - slack, 4 * kept * a * c - b * b]
        slopes += [dx[-1], rows.reshape(steps, -1)]
        return np.concatenate(values), np.concatenate(slopes) @ change

    result = minimize(
        objective,
        np.zeros(change.shape[1]),
        jac=True,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda u: constraints(u.tobytes())[0],
            "jac": lambda u: constraints(u.tobytes())[1],
        },
        options={"maxiter": 100, "ftol": 1e-9},
    )
    return table(result.x)


def _step(
    table, k: int, x: np.ndarray, dx: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Step `k` on values `(N,)` and on their derivatives by all triples `(N, 3 K)`."""
    a, b, c = table[k]
    q = x * x
    dx = dx * (a + q * (3 * b + 5 * c * q))[:, None]
    dx[:, 3 * k : 3 * k + 3] += x[:, None] ** POWERS
    return x * (a + q * (b + q * c)), dx


def _iterates(table, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last iterate of `x` and its derivatives."""
    dx = np.zeros((len(x), table.size))
    for k in range(len(table)):
        x, dx = _step(table, k, x, dx)
    return x, dx


def _extremes(table) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All that can be an extreme of an iterate on `[_FLOOR_FROM, TOP]`.

    An extreme of a composition comes from an end or from where one of its steps turns;
    the slope is zero there, so that the turn itself counts as constant. Between steps
    the values grow by the margin.
    """
    steps = len(table)
    x, dx = np.array([_floor_from(steps), TOP]), np.zeros((2, table.size))
    values, slopes = [], []
    for k, (a, b, c) in enumerate(table):
        root = np.sqrt(np.maximum(9 * b * b - 20 * a * c, 0))
        squares = (-3 * b + np.array([-root, root])) / (10 * c)
        turns = np.sqrt(np.maximum(squares, 0))
        x = np.concatenate([_MARGIN * x, turns])
        dx = np.concatenate([_MARGIN * dx, np.zeros((2, table.size))])
        x, dx = _step(table, k, x, dx)
        values.append(x)
        slopes.append(dx)
    return values, slopes


def _floor_from(steps: int) -> float:
    # No shape asks more of the low end than minimax quintics can give.
    return max(_FLOOR_FROM, widest(steps))


def _balanced(table: np.ndarray) -> np.ndarray:
    """Rescales between the steps so that every iterate but the last peaks alike."""
    table = np.array(table)
    for k in range(len(table) - 1):
        peak = iterate_bounds(table, margin=_MARGIN)[k, 1]
        table[k] *= _PEAK / peak
        table[k + 1] *= (peak / _PEAK) ** POWERS
    return table
