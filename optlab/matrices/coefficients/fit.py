"""The fit of orthogonalization's coefficients to spectra: Newton's method, a barrier.

The problem is stated in `presets.py`; here are the spectra and the solver. Every host
must find the same numbers, of which it compiles its program: so there are only
`+ - * /` and square roots, which IEEE 754 rounds alike everywhere, sums in a fixed
order, and no linear algebra library, whose kernels differ between CPUs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from optlab.matrices.coefficients.quintics import (
    NEWTON_SCHULZ,
    TOP,
    apply,
    composition,
    deflated,
    iterate_bounds,
    powers,
    quintic,
    widest,
)

# The constraints: rounding between steps, the iterates' bound, the last one's floor.
_MARGIN, _UPPER = 1.02, 1.5
_FLOOR, _FLOOR_FROM = 0.5, 0.1
# The least p(s) / s over a: what bfloat16 leaves of a difference of larger terms.
_CUSHION = 0.03
# How much tighter they are held, so that rounding to four decimals keeps them.
_SLACKS, _DIGITS = (0.01, 0.02, 0.05, 0.1), 4
# Values kept of the spectra together.
_POINTS = 192
# The starts per step: lower end at most, share of an interval that is passed over;
# and one for all steps, far inside the bounds.
_EASY, _START_CUSHIONS, _GROWTH = 0.1, (0.035, 0.05), 1.021
_MILD = (2.5, -2.5, 1.0)
# Where an intermediate iterate peaks: the fit leaves that free, so it is chosen.
_PEAK = 1.25
# The barrier's weights, relative to the error, and the most trials at each of them.
_BARRIERS, _TRIALS = [1 / 10**k for k in range(3, 13)], 20

Spectra = list[tuple[float, np.ndarray]]


# What a matrix is divided by, and the order of that norm of its singular values.
NORMALIZATIONS = {"frobenius": 2, "schatten4": 4}


def mixture(m: int, n: int, normalize: str = "frobenius") -> Spectra:
    """The weighted spectra of the objective, descending and of unit norm."""
    spectra = [(0.25, _power_law(m)), (0.75, _gaussian(m, n))]
    return [(weight, s / _norm(s, normalize)) for weight, s in spectra]


def _power_law(m: int) -> np.ndarray:
    """`i^-0.75`."""
    root = np.sqrt(np.arange(1, m + 1.0))
    return 1 / (root * np.sqrt(root))


def _gaussian(m: int, n: int) -> np.ndarray:
    """Marchenko-Pastur quantiles of the singular values of an `m <= n` matrix."""
    # Eigenvalues 1 + y + 2 sqrt(y) sin(phi): in phi the density is smooth.
    y = m / n
    edges = np.linspace(-np.pi / 2, np.pi / 2, (1 << 14) + 1)
    sine = _sine((edges[1:] + edges[:-1]) / 2)
    density = (1 - sine * sine) / (1 + y + 2 * np.sqrt(y) * sine)
    mass = np.concatenate([[0], np.cumsum(density)])
    ranks = (np.arange(m)[::-1] + 0.5) / m * mass[-1]
    left = np.searchsorted(mass, ranks, side="right") - 1
    share = (ranks - mass[left]) / density[left]
    quantiles = edges[left] + share * (edges[1] - edges[0])
    return np.sqrt(1 + y + 2 * np.sqrt(y) * _sine(quantiles))


def _sine(x: np.ndarray) -> np.ndarray:
    """Taylor's series on `[-pi / 2, pi / 2]`, since NumPy's depends on the CPU."""
    series = np.ones_like(x)
    for k in range(23, 1, -2):
        series = 1 - x * x / (k * (k - 1)) * series
    return x * series


def measured(
    singular_values: Sequence | np.ndarray, normalize: str = "frobenius"
) -> Spectra:
    """Checks and normalises measured singular values; each array weighs the same."""
    try:
        arrays = (
            [_real(singular_values)]
            if np.ndim(singular_values[0]) == 0
            else [_real(s) for s in singular_values]
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "singular_values must be one or more 1-D arrays of real numbers"
        ) from error
    for s in arrays:
        if s.ndim != 1 or not s.size:
            raise ValueError(f"singular_values must be 1-D, not empty, got {s.shape}")
        if not np.isfinite(s).all() or (s < 0).any() or not s.any():
            raise ValueError("singular_values must be finite, >= 0 and not all zero")
    arrays = [np.sort(s)[::-1] / s.max() for s in arrays]
    return [(1 / len(arrays), s / _norm(s, normalize)) for s in arrays]


def _real(values: Any) -> np.ndarray:
    """In float64; of complex numbers a part would be lost."""
    return np.asarray(values).astype(np.float64, casting="same_kind")


def _norm(s: np.ndarray, normalize: str) -> np.ndarray:
    square = s * s
    if NORMALIZATIONS[normalize] == 2:
        return np.sqrt(_sum(square))
    return np.sqrt(np.sqrt(_sum(square * square)))


def _sum(x: np.ndarray) -> np.ndarray:
    """The sum over the first axis, by halves."""
    while len(x) > 1:
        half = len(x) // 2
        x = np.concatenate([x[:half] + x[half : 2 * half], x[2 * half :]])
    return x[0]


def _thinned(spectra: Spectra) -> tuple[np.ndarray, np.ndarray]:
    """A bounded number of values, their weights: the head dense, the rest evenly."""
    values, weights = [], []
    count = max(8, _POINTS // len(spectra))
    for weight, s in spectra:
        m = len(s)
        ranks = np.arange(m) + 1
        if m > count:
            head = np.array([1.0, m])
            while len(head) < count // 4:
                means = np.sqrt(head[1:] * head[:-1])
                head = np.sort(np.concatenate([head, means]))
            tail = np.linspace(1, m, count - len(head))
            ranks = np.unique(np.round(np.concatenate([head, tail])).astype(int))
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
            ends = widest(steps), widest(steps) / 2
            starts = [
                composition(max(low, lowest), steps, cushion)
                for low, cushion in zip(ends, _START_CUSHIONS, strict=True)
            ]
            starts = [_balanced(deflated(x, TOP * _GROWTH, _GROWTH)) for x in starts]
            safe = np.round(starts[0], _DIGITS)
        else:
            safe = np.tile(NEWTON_SCHULZ, (steps, 1))
            starts = [_scan(s, weights, steps), np.tile(_MILD, (steps, 1))]
        fits = [_bounded_fit(start, (s, weights), per_step) for start in starts]
    fits = [table for table in fits if table is not None]
    return min(fits, key=lambda table: _error(table, s, weights), default=safe)


def _error(table, s: np.ndarray, weights: np.ndarray) -> float:
    residual = apply(table, s) - 1
    return float(_sum(weights * residual * residual))


def _bounded_fit(start, spectrum, per_step: bool) -> np.ndarray | None:
    """Optimises until the rounded result keeps the bounds, with more and more slack."""
    for slack in _SLACKS:
        table = _optimum(start, spectrum, slack, per_step)
        if table is None:
            continue
        table = np.round(_balanced(table) if per_step else table, _DIGITS)
        bounds = iterate_bounds(table, margin=_MARGIN)
        above_floor = _constraints(table, 0.0, per_step)[0][-2 * (len(table) + 1) :]
        if bounds.min() >= 0 and bounds.max() <= _UPPER and above_floor.min() >= 0:
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
    x = np.repeat(points[:, None], len(triples), 1)
    feasible = np.ones(len(triples), bool)
    for _ in range(steps):
        x = quintic(triples.T[:, None], x)
        feasible &= x.max(0) <= _UPPER - 0.05
    residual = x[: len(few)] - 1
    error = _sum(weights[few][:, None] * residual * residual)
    best = np.where(feasible, error, np.inf).argsort(kind="stable")[:100]
    for triple in triples[best]:
        table = np.tile(triple, (steps, 1))
        if _constraints(table, 2 * _SLACKS[0], False)[0].min() > 0:
            return table
    return np.tile(_MILD, (steps, 1))


def _optimum(start, spectrum, slack: float, per_step: bool) -> np.ndarray | None:
    """Damped Newton's method under the barrier `sum_i 1 / c_i`, which fades."""
    s, weights = spectrum

    def merit(table, barrier):
        """Value, gradient, Hessian; none unless every constraint holds."""
        value, slope, bend = _constraints(table, slack, per_step)
        if not value.min() > 0:  # nor where it is not a number
            return None
        push = barrier / (value * value)
        x, dx, ddx = _iterates(table, s, per_step)
        r, w = x - 1, 2 * weights
        turn = 2 * push / value
        return (
            _sum(weights * r * r) + _sum(barrier / value),
            _sum((w * r)[:, None] * dx) - _sum(push[:, None] * slope),
            _sum(_outer(w[:, None] * dx, dx) + (w * r)[:, None, None] * ddx)
            + _sum(_outer(turn[:, None] * slope, slope) - push[:, None, None] * bend),
        )

    table, damping = start, 1e-2
    for share in _BARRIERS:
        barrier = share * max(_error(table, s, weights), 1e-9)
        now = merit(table, barrier)
        if now is None:
            return None
        for _ in range(_TRIALS):
            value, gradient, hessian = now
            size = np.abs(np.diag(hessian))
            step = _solve(hessian + np.diag(damping * size + 1e-14), -gradient)
            trial = table if step is None else _moved(table, step, per_step)
            then = None if step is None else merit(trial, barrier)
            if then is None or not then[0] < value:
                damping = min(damping * 8, 1e8)
                continue
            table, now, damping = trial, then, max(damping / 8, 1e-12)
            if value - then[0] < 1e-6 * value:
                break
    return table


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """Solves by elimination; none unless the symmetric `matrix` is positive."""
    rows = np.concatenate([matrix, right[:, None]], 1)
    for k in range(len(rows)):
        if not rows[k, k] > 0:
            return None
        rows[k] = rows[k] / rows[k, k]
        others = rows[:, k].copy()
        others[k] = 0
        rows = rows - others[:, None] * rows[k]
    return rows[:, -1]


def _outer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x[:, :, None] * y[:, None, :]


def _unknowns(k: int, steps: int, per_step: bool) -> tuple[int, int]:
    """The first unknown of step `k`, and the first of its coefficients that is one.

    `s -> k s` between two steps changes nothing, so that with a triple for each step
    all leading coefficients but the last stay where they are.
    """
    if not per_step:
        return 0, 0
    return 2 * k, int(k < steps - 1)


def _count(steps: int, per_step: bool) -> int:
    return 2 * steps + 1 if per_step else 3


def _moved(table: np.ndarray, step: np.ndarray, per_step: bool) -> np.ndarray:
    table = table.copy()
    for k in range(len(table)):
        column, first = _unknowns(k, len(table), per_step)
        table[k, first:] += step[column : column + 3 - first]
    return table


def _step(table, k: int, values, per_step: bool):
    """Step `k` on values `(N,)` and their two derivatives by the unknowns."""
    x, dx, ddx = values
    a, b, c = table[k]
    column, first = _unknowns(k, len(table), per_step)
    own = slice(column, column + 3 - first)
    q = x * x
    slope, bend = a + q * (3 * b + 5 * c * q), x * (6 * b + 20 * c * q)
    slope_by = np.stack([np.ones_like(q), 3 * q, 5 * q * q], 1)[:, first:]
    mixed = _outer(slope_by, dx)
    ddx = slope[:, None, None] * ddx + _outer(bend[:, None] * dx, dx)
    ddx[:, own] += mixed
    ddx[:, :, own] += mixed.transpose(0, 2, 1)
    dx = slope[:, None] * dx
    dx[:, own] += powers(x)[:, first:]
    return quintic(table[k], x), dx, ddx


def _iterates(table, x: np.ndarray, per_step: bool):
    """The last iterate of `x` and its derivatives."""
    count = _count(len(table), per_step)
    dx, ddx = np.zeros((len(x), count)), np.zeros((len(x), count, count))
    for k in range(len(table)):
        x, dx, ddx = _step(table, k, (x, dx, ddx), per_step)
    return x, dx, ddx


def _constraints(table, slack: float, per_step: bool):
    """What must be positive, and its first two derivatives by the unknowns.

    An extreme of a composition on `[_FLOOR_FROM, TOP]` comes from an end or from where
    one of its steps turns. Between steps the values grow by the margin.
    """
    steps, count = len(table), _count(len(table), per_step)
    x = np.array([_floor_from(steps), TOP])
    dx, ddx = np.zeros((2, count)), np.zeros((2, count, count))
    kept, parts = 1 - _CUSHION, []
    for k, (a, b, c) in enumerate(table):
        column, first = _unknowns(k, steps, per_step)
        own = slice(column, column + 3 - first)
        root = np.sqrt(np.maximum(9 * b * b - 20 * a * c, 0))
        q = np.maximum((-3 * b + np.array([-root, root])) / (10 * c), 0)
        turns = np.sqrt(q)
        # p'(turn) = 0 tells how the turn moves; one that is nearly flat stays.
        bend = turns * (6 * b + 20 * c * q)
        slope_by = np.stack([np.ones(2), 3 * q, 5 * q * q], 1)[:, first:]
        shift = np.zeros((2, count))
        inverse = np.zeros(2)
        np.divide(-1, bend, out=inverse, where=np.abs(bend) > 0.1 * a)
        shift[:, own] = inverse[:, None] * slope_by
        x = np.concatenate([_MARGIN * x, turns])
        dx = np.concatenate([_MARGIN * dx, shift])
        ddx = np.concatenate([_MARGIN * ddx, np.zeros((2, count, count))])
        x, dx, ddx = _step(table, k, (x, dx, ddx), per_step)
        # Between the steps the scale is free, unless they share their triple.
        if not per_step or k == steps - 1:
            parts.append((_UPPER - slack - x, -dx, -ddx))
        # p(s) / s >= _CUSHION a, and so p >= 0.
        by, by_two = np.zeros((1, count)), np.zeros((1, count, count))
        by[0, own] = np.array([4 * kept * c, -2 * b, 4 * kept * a])[first:]
        twice = np.diag([0.0, -2, 0])
        twice[0, 2] = twice[2, 0] = 4 * kept
        by_two[0, own, own] = twice[first:, first:]
        parts.append((np.array([4 * kept * a * c - b * b]), by, by_two))
    parts.append((x - _FLOOR - slack, dx, ddx))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _floor_from(steps: int) -> float:
    # No shape asks more of the low end than minimax quintics can give.
    return max(_FLOOR_FROM, widest(steps))


def _balanced(table: np.ndarray) -> np.ndarray:
    """Rescales between the steps so that every iterate but the last peaks alike."""
    table = np.array(table)
    for k in range(len(table) - 1):
        peak = iterate_bounds(table, margin=_MARGIN)[k, 1]
        table[k] *= _PEAK / peak
        table[k + 1] *= powers(peak / _PEAK)
    return table
