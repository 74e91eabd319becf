"""The precision of every matrix product: by what it is for, and where it runs.

=====================================  =======  ================  ==============
products of float32 matrices           CPUs     NVIDIA GPUs       TPUs
=====================================  =======  ================  ==============
"iteration": Newton-Schulz             float32  bfloat16 arrays   bfloat16 arrays
"rotation": into and out of a basis    float32  one bfloat16 pass  one pass
"basis": what follows a basis          float32  three passes      three passes
"exact": what decides eigenvectors     float32  float32           float32
=====================================  =======  ================  ==============

An *iteration* is the Newton-Schulz of all methods. A *rotation* is one of SOAP's
gradient and direction, or COSMOS's way back out of its basis. *Basis* products are the
others of COSMOS: the power step, its Gram matrices, what lies inside the basis and what
is left outside. *Exact* are SOAP's Gram matrices and the refresh of its bases, COSMOS's
first basis, and all measurements. Three passes split each number into two bfloat16
parts, and keep an error of 2^-16.

The choice is made when a program is lowered for a backend, so that one function serves
all. AMD's GPUs have bfloat16 iterations, and float32 for the rest. Products of float64
are float64 everywhere.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from optlab import checks
from optlab.matrices.symmetric import symmetric

Kind = Literal["rotation", "basis", "exact"]
Passes = Literal["default", "high", "highest"]
Backend = Literal["cuda", "tpu"]

_ITERATION = ("cuda", "rocm", "tpu")
_POLICY: dict[str, dict[str, Any]] = {
    "rotation": {
        "cuda": lax.DotAlgorithmPreset.BF16_BF16_F32,
        "tpu": lax.Precision.DEFAULT,
    },
    "basis": {
        "cuda": lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
        "tpu": lax.Precision.HIGH,
    },
    "exact": {},
}
# What of a float32 number takes part in a product: the bits of a part, and the parts.
_PARTS: dict[tuple[str, Any], tuple[int, int]] = {
    ("cuda", lax.DotAlgorithmPreset.BF16_BF16_F32): (8, 1),
    ("cuda", lax.DotAlgorithmPreset.BF16_BF16_F32_X3): (8, 2),
    ("cuda", lax.Precision.DEFAULT): (11, 1),
    ("cuda", lax.Precision.HIGH): (11, 1),
    ("tpu", lax.Precision.DEFAULT): (8, 1),
    ("tpu", lax.Precision.HIGH): (8, 2),
}
_EMULATED: ContextVar[Backend | None] = ContextVar("emulated", default=None)


@contextlib.contextmanager
def emulate(backend: Backend) -> Iterator[None]:
    """Rounds products on any device as they would be rounded on that backend.

    For functions that are traced inside: what was compiled before stays as it was.
    Made for tests and studies on CPUs; it is slow.
    """
    token = _EMULATED.set(backend)
    try:
        yield
    finally:
        _EMULATED.reset(token)


def check_passes(**values: Any) -> None:
    """Raises `ValueError` for what is neither None nor a name of a precision."""
    for name, value in values.items():
        if value is not None:
            checks.one_of(("default", "high", "highest"), **{name: value})


def product(
    a: jax.Array, b: jax.Array, kind: Kind = "exact", passes: Passes | None = None
) -> jax.Array:
    """The product of two stacks of matrices, as precise as its purpose needs.

    Args:
      a: shape `(..., m, k)`.
      b: shape `(..., k, n)`.
      kind: what it is for, see above.
      passes: jax's name of a precision, which overrules the policy for all backends,
        unless the product is "exact".

    Returns:
      Shape `(..., m, n)`.
    """

    def multiply(precision: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda a, b: jnp.asarray(jnp.matmul(a, b, precision=precision))

    choice = _choice(kind, passes, a.dtype)
    backend = _EMULATED.get()
    if backend in choice:
        return _emulated(a, b, *_PARTS.get((backend, choice[backend]), (24, 1)))
    exact = multiply(lax.Precision.HIGHEST)
    if not choice:
        return exact(a, b)
    ways = {name: multiply(precision) for name, precision in choice.items()}
    return lax.platform_dependent(a, b, default=exact, **ways)


def gram_matrix(x: jax.Array) -> jax.Array:
    """`X X^T` of a stack `(..., m, n)`, an exact product, as `(..., m, m)`."""
    return symmetric(product, x, x.mT)


def rounding(kind: Kind, passes: Passes | None, dtype: Any) -> jax.Array:
    """The relative error that such a product may have, a scalar of that dtype."""
    exact = float(jnp.finfo(dtype).eps)
    choice = _choice(kind, passes, dtype)

    def unit(backend: str) -> float:
        bits, parts = _PARTS.get((backend, choice[backend]), (24, 1))
        return max(2.0 ** -(bits * parts), exact)

    def at(error: float) -> Callable[[], jax.Array]:
        return lambda: jnp.asarray(error, dtype)

    backend = _EMULATED.get()
    if backend in choice:
        return at(unit(backend))()
    if not choice:
        return at(exact)()
    ways = {name: at(unit(name)) for name in choice}
    return lax.platform_dependent(default=at(exact), **ways)


def iterate(f: Callable[[jax.Array, Any], jax.Array], x: jax.Array) -> jax.Array:
    """`f(x, dtype)` with the dtype that iterations have where it runs.

    That of `x` on CPUs and wherever it is not float32; elsewhere bfloat16.
    """

    def own(x: jax.Array) -> jax.Array:
        return f(x, x.dtype)

    def short(x: jax.Array) -> jax.Array:
        return f(x, jnp.bfloat16)

    if x.dtype != jnp.float32:
        return own(x)
    if _EMULATED.get() is not None:
        return short(x)
    return lax.platform_dependent(x, default=own, **dict.fromkeys(_ITERATION, short))


def _choice(kind: Kind, passes: Passes | None, dtype: Any) -> dict[str, Any]:
    """The precision on each backend that does not take the highest."""
    if dtype != jnp.float32 or kind == "exact" or passes == "highest":
        return {}
    if passes is None:
        return _POLICY[kind]
    return dict.fromkeys(("cuda", "rocm", "tpu"), lax.Precision(passes))


def _emulated(a: jax.Array, b: jax.Array, bits: int, parts: int) -> jax.Array:
    """A product of operands that are split into parts of so many bits."""

    def split(x: jax.Array) -> list[jax.Array]:
        found = []
        for _ in range(parts):
            part = lax.reduce_precision(x, 8, bits - 1)
            found.append(part)
            x = x - part
        return found

    highest = lax.Precision.HIGHEST
    # The smallest first. Products of two low parts are left out, as devices do.
    pairs = [
        (x, y)
        for i, x in enumerate(split(a))
        for j, y in enumerate(split(b))
        if i + j < parts
    ]
    return jnp.asarray(
        sum(jnp.matmul(x, y, precision=highest) for x, y in reversed(pairs))
    )
