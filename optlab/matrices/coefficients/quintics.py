"""Odd quintics `p(s) = a s + b s^3 + c s^5`, composed: ranges and minimax tables.

The composition of `K` odd quintics that is nearest to one on `[l, 1]` is greedy: each
is the minimax quintic on the interval that the ones before it leave (Amsel et al.,
theorem 4.1). The minimax quintic itself comes from Remez' exchange.

Only `+ - * /` and square roots, which IEEE 754 rounds alike everywhere, and no linear
algebra library: every host gets the same bits.

References:
  Amsel et al., *The Polar Express*, `arXiv:2505.16932
  <https://arxiv.org/abs/2505.16932>`_, 2025.
  Grishina et al., *Accelerating Newton-Schulz iteration for orthogonalization via
  Chebyshev-type polynomials*, `arXiv:2506.10935 <https://arxiv.org/abs/2506.10935>`_,
  2025.
"""

from collections.abc import Sequence
from functools import cache
from math import sqrt

import numpy as np

# Inputs exceed one by the rounding of the norm that they are divided by.
TOP = 1.05

# The quintic with p(1) = 1 and p' = p'' = 0 there.
NEWTON_SCHULZ = np.array([1.875, -1.25, 0.375])

# Polar Express: lower end, cushion and safety factor of its listing.
_LOWER, _CUSHION, _SAFETY = 1e-3, 0.02407327424182761, 1.01
# What the Chebyshev-type composition leaves of the error.
_DEVIATION = 0.05


def quintic(triple, x):
    """`a x + b x^3 + c x^5`, entry by entry."""
    a, b, c = triple
    square = x * x
    return x * (a + square * (b + square * c))


def powers(x) -> np.ndarray:
    """`x`, `x^3` and `x^5`, along a new last axis."""
    square = x * x
    return np.stack([x, x * square, x * square * square], -1)


def apply(table, x):
    """The composition of all steps on `x`."""
    for triple in table:
        x = quintic(triple, x)
    return x


def iterate_bounds(
    coeffs: Sequence[Sequence[float]] | np.ndarray,
    top: float = TOP,
    margin: float = 1.0,
) -> np.ndarray:
    """The exact range of every iterate over inputs in `[0, top]`.

    An iterate's range is an interval around the fixed point 0, so the next one's is
    found at its ends and where `p' = 0`.

    Args:
      coeffs: one triple per step.
      top: the largest input.
      margin: factor on the range before each step.

    Returns:
      Array of shape `(steps, 2)`: the least and the largest value after each step.
    """
    low, high, bounds = 0.0, top, []
    for a, b, c in coeffs:
        low, high = margin * low, margin * high
        # p' = 0; the last one is for c = 0 and else no more than one further point.
        root = np.sqrt(np.maximum(9 * b * b - 20 * a * c, 0.0))
        tops = np.array([-3 * b - root, -3 * b + root, -a])
        bottoms = np.array([10 * c, 10 * c, 3 * b])
        squares = np.divide(tops, bottoms, out=np.zeros(3), where=bottoms != 0)
        turns = np.sqrt(np.maximum(squares, 0.0))
        turns = np.concatenate([-turns, turns])
        inside = turns[(turns > low) & (turns < high)]
        values = quintic((a, b, c), np.concatenate([[low, high], inside]))
        low, high = values.min(), values.max()
        bounds.append((low, high))
    return np.array(bounds)


def minimax(lower: float, upper: float) -> tuple[np.ndarray, float]:
    """The quintic nearest to one on `[lower, upper]`, and its largest deviation."""
    if lower > (1 - 5e-6) * upper:
        return NEWTON_SCHULZ / powers(upper), 0.0
    x = [lower, (3 * lower + upper) / 4, (lower + 3 * upper) / 4, upper]
    triple, deviation = NEWTON_SCHULZ, 0.0
    # The error alternates over four points: the ends, and where p' = 0. Its size there
    # grows from one exchange to the next, until rounding ends it.
    while x[0] < x[1] < x[2] < x[3]:
        q = [v * v for v in x]
        # Weights of the third divided difference, which leaves nothing of a quintic.
        w0 = 1 / (x[0] * (q[0] - q[1]) * (q[0] - q[2]) * (q[0] - q[3]))
        w1 = 1 / (x[1] * (q[1] - q[0]) * (q[1] - q[2]) * (q[1] - q[3]))
        w2 = 1 / (x[2] * (q[2] - q[0]) * (q[2] - q[1]) * (q[2] - q[3]))
        w3 = 1 / (x[3] * (q[3] - q[0]) * (q[3] - q[1]) * (q[3] - q[2]))
        level = (w0 + w1 + w2 + w3) / (w0 - w1 + w2 - w3)
        if level <= deviation:
            break
        # p(x) / x is the parabola in x^2 through the last three points.
        h1, h2, h3 = (1 + level) / x[1], (1 - level) / x[2], (1 + level) / x[3]
        first, second = (h2 - h1) / (q[2] - q[1]), (h3 - h2) / (q[3] - q[2])
        c = (second - first) / (q[3] - q[1])
        b = first - c * (q[1] + q[2])
        a = h1 - first * q[1] + c * q[1] * q[2]
        triple, deviation = np.array([a, b, c]), level
        root = sqrt(max(9 * b * b - 20 * a * c, 0.0))
        x[1] = sqrt(max((-3 * b - root) / (10 * c), 0.0))
        x[2] = sqrt(max((-3 * b + root) / (10 * c), 0.0))
    return triple, deviation


def composition(lower: float, steps: int, cushion: float = 0.0) -> np.ndarray:
    """Greedy minimax quintics from `[lower, 1]` on, which compose to the best one."""
    upper, table = 1.0, []
    for _ in range(steps):
        triple, _ = minimax(max(lower, cushion * upper), upper)
        # With the cushion the ends are no longer equally far from one.
        ends = quintic(triple, np.array([lower, upper]))
        triple = triple * 2 / ends.sum()
        table.append(triple)
        lower = float(quintic(triple, lower))
        upper = 2 - lower
    return np.array(table)


def deflated(
    table: np.ndarray, first: float = _SAFETY, later: float = _SAFETY
) -> np.ndarray:
    """`p(s / safety)` at every step, against rounding above the interval's end."""
    safety = np.full(len(table), later)
    safety[0] = first
    return table / powers(safety)


def polar_express(steps: int) -> np.ndarray:
    """The first `steps` triples of Polar Express, for inputs up to 1.01."""
    # From the eighth step on it is Newton-Schulz' own quintic, taken as it is.
    table = composition(_LOWER, min(steps, 7), _CUSHION)
    last = np.tile(NEWTON_SCHULZ, (max(steps - 7, 0), 1))
    return np.concatenate([deflated(table), last])


def chebyshev(steps: int) -> np.ndarray:
    """Minimax on the widest interval that `steps` triples bring to within 5%."""
    return deflated(composition(widest(steps), steps), TOP)


@cache
def widest(steps: int) -> float:
    """The lower end that `steps` minimax quintics just take to within 5%."""

    low, high = 1 / (1 << (3 * steps + 6)), 0.9
    for _ in range(45):
        lower = sqrt(low * high)
        if apply(composition(lower, steps), lower) < 1 - _DEVIATION:
            low = lower
        else:
            high = lower
    return high
