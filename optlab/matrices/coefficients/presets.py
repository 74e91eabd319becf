"""Coefficients of the odd quintics `p(s) = a s + b s^3 + c s^5` that orthogonalize.

Three ways to get the triples of `K` steps, `p_K = p^(K) o ... o p^(1)`:

* presets: `"muon"`; `"dion"`, which are five triples and no other number of steps;
  `"polar_express"`, greedy minimax quintics on a shrinking interval, computed here by
  Remez' exchange; `"chebyshev"`, the same without the cushion and on the widest
  interval that `K` steps take to within 5% of one;
* `fit_coefficients`: the triple, or the `K` triples, that suit a matrix's shape,

      minimise  sum_j w_j mean_i (p_K(s_ij) - 1)^2
      subject to  0 <= every iterate <= 1.5  on [0, 1.05],

  over two spectra of unit norm, Frobenius' or Schatten's of order four:
  `s_i ~ i^-0.75` with weight 0.25, and the Marchenko-Pastur quantiles of the shape,
  the spectrum of a Gaussian matrix, with 0.75;
* numbers of your own.

ROOT's authors published four fitted triples and not how they found them; this recipe
comes near those at 2048 x 16384. The bound is a constraint and no clip, since clipped
iterates are minimised by saturation. It holds even if the values grow by 2% between
the steps. Two constraints are ours, for the top of a low-rank spectrum, which lies
where neither of the two spectra has a value: `p_K >= 0.5` on [0.1, 1.05], and
`b^2 <= 0.97 * 4 a c`, so that `p(s) / s` keeps 3% of `a`. A step that takes a value
nearer to zero than that leaves its sign to bfloat16's rounding, as "chebyshev", which
is for float32, does.

Fits of common shapes stand in `table.json`, so that every machine compiles the
same program. To make the file again:
`python -c "from optlab.matrices.coefficients import presets; presets.write_table()"`.

References:
  Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
  He et al., *ROOT*, `arXiv:2511.20626 <https://arxiv.org/abs/2511.20626>`_, 2025.
  Ahn et al., *Dion*, `arXiv:2504.05295 <https://arxiv.org/abs/2504.05295>`_, 2025.
  Amsel et al., *The Polar Express*, `arXiv:2505.16932
  <https://arxiv.org/abs/2505.16932>`_, 2025.
  Grishina et al., *Accelerating Newton-Schulz iteration for orthogonalization via
  Chebyshev-type polynomials*, `arXiv:2506.10935 <https://arxiv.org/abs/2506.10935>`_,
  2025.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from optlab.checks import newton_schulz_steps, one_of, positive_int
from optlab.matrices.coefficients.fit import NORMALIZATIONS, fit, measured, mixture
from optlab.matrices.coefficients.quintics import apply, chebyshev, polar_express

Triple = tuple[float, float, float]

MUON: Triple = (3.4445, -4.7750, 2.0315)
# Those of the code of Dion, the preset "dion" of optax's Muon.
DION: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
PRESETS = ("muon", "dion", "polar_express", "chebyshev")

_TABLE = Path(__file__).with_name("table.json")
# Steps, whether each has its triple, and the norm.
_TABULATED = (
    (5, False, "frobenius"),
    (4, True, "frobenius"),
    (5, True, "frobenius"),
    (4, True, "schatten4"),
    (5, True, "schatten4"),
)


def resolve_coefficients(
    coeffs: str | Sequence[float] | Sequence[Sequence[float]], steps: int
) -> tuple[Triple, ...]:
    """Turns coefficients, however they are given, into one triple per step.

    Args:
      coeffs: a triple for every step, one triple per step, or a name in `PRESETS`.
      steps: number of steps.

    Returns:
      `steps` triples of floats.

    Raises:
      ValueError: `coeffs` is an unknown name, has another shape than `(3,)` or
        `(steps, 3)` ("dion" has five steps), or holds what is not finite; `steps` is
        below one or above 100.
    """
    newton_schulz_steps(steps=steps)
    if isinstance(coeffs, str):
        if coeffs not in PRESETS:
            raise ValueError(f"coeffs must be one of {PRESETS}, got {coeffs!r}")
        table = {
            "muon": lambda: np.asarray(MUON),
            "dion": lambda: np.asarray(DION),
            "polar_express": lambda: polar_express(steps),
            "chebyshev": lambda: chebyshev(steps),
        }[coeffs]()
    else:
        try:
            table = np.asarray(coeffs, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"coeffs must be numbers, got {coeffs!r}") from error
    if table.shape not in ((3,), (steps, 3)):
        raise ValueError(
            f"coeffs must have shape (3,) or ({steps}, 3) for {steps} steps, "
            f"got {table.shape}"
            + (f" of {coeffs!r}" if isinstance(coeffs, str) else "")
        )
    if not np.isfinite(table).all():
        raise ValueError(f"coeffs must be finite, got {coeffs!r}")
    return _triples(np.broadcast_to(table, (steps, 3)))


def check_coefficients(coeffs: Any, steps: int) -> None:
    """Raises `ValueError` for what `resolve_coefficients` refuses, as `ns_coeffs`."""
    try:
        resolve_coefficients(coeffs, steps)
    except ValueError as error:
        raise ValueError(f"ns_coeffs: {error}") from None


def fit_coefficients(
    shape: tuple[int, int],
    steps: int = 5,
    singular_values: Sequence | np.ndarray | None = None,
    *,
    per_step: bool = False,
    normalize: str = "frobenius",
) -> Triple | tuple[Triple, ...]:
    """Fits the coefficients to the singular values that a shape leads one to expect.

    Deterministic, rounded to four decimals, and remembered by `(min, max)` of the
    shape, so that tall and wide are the same. A shape that is not in the table takes
    a fraction of a second.

    Args:
      shape: `(rows, columns)` of the matrix.
      steps: number of steps `K`.
      singular_values: measured ones to fit to instead: an array of shape `(k,)`, or
        a sequence of such arrays, which count alike. Each is divided by its norm.
      per_step: a triple for each step rather than one for all.
      normalize: the norm by which `orthogonalize` divides the matrix, "frobenius" or
        "schatten4".

    Returns:
      A triple, or `steps` triples with `per_step`.

    Raises:
      ValueError: `shape` or `steps` are no positive integers; `singular_values` are
        empty, negative, not finite or all zero; `normalize` is unknown.
    """
    m, n = _sides(shape)
    positive_int(steps=steps)
    one_of(tuple(NORMALIZATIONS), normalize=normalize)
    if singular_values is None:
        table = _fit_shape(m, n, int(steps), bool(per_step), normalize)
    else:
        spectra = measured(singular_values, normalize)
        table = _triples(fit(spectra, int(steps), per_step))
    return table if per_step else table[0]


def mixture_error(
    coeffs: str | Sequence[float] | Sequence[Sequence[float]],
    shape: tuple[int, int],
    steps: int = 5,
    normalize: str = "frobenius",
) -> float:
    """The objective of the fit: the mean of `(p_K(s) - 1)^2` over the two spectra.

    Args:
      coeffs: as `resolve_coefficients` takes them.
      shape: `(rows, columns)` of the matrix.
      steps: number of steps `K`.
      normalize: as `fit_coefficients` takes it.

    Returns:
      The error, 1 for a polynomial that is zero.

    Raises:
      ValueError: as `resolve_coefficients` and `fit_coefficients`.
    """
    table = resolve_coefficients(coeffs, steps)
    one_of(tuple(NORMALIZATIONS), normalize=normalize)
    return sum(
        weight * float(np.mean((apply(table, s) - 1) ** 2))
        for weight, s in mixture(*_sides(shape), normalize)
    )


def write_table() -> None:
    """Fits every shape of the committed table and writes the file."""
    # LLaMA 60M, 130M, 350M, 1B, 3B and 7B: attention, and the MLP.
    shapes = [(512, 512), (512, 1376), (768, 768), (768, 2048)]
    shapes += [(1024, 1024), (1024, 2736), (2048, 2048), (2048, 5461)]
    shapes += [(3200, 3200), (3200, 8640), (4096, 4096), (4096, 11008)]
    # GPT-2 small, and what ROOT's authors give.
    shapes += [(768, 2304), (768, 3072), (2048, 3072), (2048, 8192), (2048, 16384)]
    # ResNet-20 and ResNet-32 as (9 in, out), their shortcuts as (in, out).
    shapes += [(16, 27), (16, 144), (32, 144), (32, 288), (64, 288), (64, 576)]
    shapes += [(16, 32), (32, 64)]
    shapes += [(1 << k, 1 << k) for k in range(4, 14)]
    lines = [
        f"{json.dumps(_key(m, n, *kind))}: "
        + json.dumps(fit(mixture(m, n, kind[2]), *kind[:2]).tolist())
        for m, n in sorted(set(shapes))
        for kind in _TABULATED
    ]
    _TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _sides(shape: tuple[int, int]) -> tuple[int, int]:
    try:
        rows, columns = shape
        positive_int(rows=rows, columns=columns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"shape must be two positive ints, got {shape!r}") from error
    return min(int(rows), int(columns)), max(int(rows), int(columns))


@cache
def _fit_shape(
    m: int, n: int, steps: int, per_step: bool, normalize: str
) -> tuple[Triple, ...]:
    known = _table().get(_key(m, n, steps, per_step, normalize))
    if known is None:
        known = fit(mixture(m, n, normalize), steps, per_step)
    return _triples(known)


@cache
def _table() -> dict[str, list[list[float]]]:
    return json.loads(_TABLE.read_text())


def _key(m: int, n: int, steps: int, per_step: bool, normalize: str) -> str:
    key = f"{m}x{n}, {steps} steps" + (", one for all" if not per_step else "")
    return key if normalize == "frobenius" else f"{key}, {normalize}"


def _triples(table) -> tuple[Triple, ...]:
    return tuple((float(a), float(b), float(c)) for a, b, c in table)
