"""Checks of arguments, made where an optimizer is built.

Rates and betas may also be traced arrays, which `optax.inject_hyperparams` passes;
of those only the shape and the kind of number are looked at.
"""

import math
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Counts of steps are held in int32.
_MOST = 2**31 - 1
_MOST_BYTES = 2**63 - 1
# Newton-Schulz has converged long before, and every step costs compile time.
_MOST_NS_STEPS = 100


def is_integer(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy; a boolean is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def static(**values: Any) -> None:
    """Raises `ValueError` for arrays where Python's own values are needed.

    Those set shapes or loops. All of them are named at once.
    """
    arrays = sorted(n for n, value in values.items() if isinstance(value, jax.Array))
    if arrays:
        raise ValueError(
            f"{', '.join(arrays)} must be Python numbers: they set shapes or loops; "
            "under optax.inject_hyperparams name them in static_args"
        )


def positive_int(**values: Any) -> None:
    """Raises `ValueError` for what is no integer of at least one."""
    _integer(1, _MOST, values)


def non_negative_int(**values: Any) -> None:
    """Raises `ValueError` for what is no integer of at least zero."""
    _integer(0, _MOST, values)


def newton_schulz_steps(**values: Any) -> None:
    """Raises `ValueError` for what is no sensible number of steps."""
    _integer(1, _MOST_NS_STEPS, values)


def _integer(least: int, most: int, values: dict[str, Any]) -> None:
    static(**values)
    for name, value in values.items():
        plain = is_integer(value)
        if not plain or not least <= value <= most:
            limit = "" if most == _MOST else f" and <= {most}"
            limit = " below 2^31" if plain and value > most == _MOST else limit
            raise ValueError(
                f"{name} must be an integer >= {least}{limit}, got {value!r}"
            )


def positive(**values: Any) -> None:
    """Raises `ValueError` for what is no finite number above zero."""
    _numbers(lambda x: x > 0 and math.isfinite(x), "> 0", values)


def non_negative(**values: Any) -> None:
    """Raises `ValueError` for what is no finite number of at least zero."""
    _numbers(lambda x: x >= 0 and math.isfinite(x), ">= 0", values)


def fraction(**values: Any) -> None:
    """Raises `ValueError` for what is no number in `[0, 1)`."""
    _numbers(lambda x: 0 <= x < 1, "in [0, 1)", values)


def share(**values: Any) -> None:
    """Raises `ValueError` for what is no plain number in `(0, 1]`."""
    static(**values)
    _numbers(lambda x: 0 < x <= 1, "in (0, 1]", values)


def level(**values: Any) -> None:
    """Raises `ValueError` for what is no number above zero; infinity is one."""
    _numbers(lambda x: x > 0, "> 0", values)


def rate(**values: Any) -> None:
    """Raises `ValueError` for what is no number of at least zero and no schedule.

    None is allowed where optax allows it: no scaling.
    """
    given = {n: x for n, x in values.items() if x is not None and not callable(x)}
    _numbers(lambda x: x >= 0 and math.isfinite(x), ">= 0, a schedule or None", given)


def decay(**values: Any) -> None:
    """Raises `ValueError` for what is no number of at least zero and no schedule."""
    given = {name: value for name, value in values.items() if not callable(value)}
    _numbers(lambda x: x >= 0 and math.isfinite(x), ">= 0 or a schedule", given)


def _numbers(good: Callable[[float], bool], rule: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        plain = value.item() if _is_numpy_scalar(value) else value
        if isinstance(plain, jax.Array):
            real = jnp.issubdtype(plain.dtype, jnp.floating)
            fine = plain.ndim == 0 and (
                real or jnp.issubdtype(plain.dtype, jnp.integer)
            )
        else:
            fine = _is_plain(plain) and good(plain)
        if not fine:
            large = isinstance(plain, int) and abs(plain) > _MOST
            more = "; integers are below 2^31" if large else ""
            raise ValueError(f"{name} must be a number {rule}, got {value!r}{more}")


def _is_plain(value: Any) -> bool:
    """Whether it is Python's number, and no integer beyond int32: jax takes none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _MOST
    return isinstance(value, float)


def _is_numpy_scalar(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.ndim == 0


def seed(**values: Any) -> None:
    """Raises `ValueError` for what is no integer that keys are made of."""
    for name, value in values.items():
        if isinstance(value, jax.Array):
            fine = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
        else:
            fine = is_integer(value) and 0 <= value <= _MOST
        if not fine:
            raise ValueError(
                f"{name} must be an integer >= 0 and below 2^31, got {value!r}"
            )


def boolean(**values: Any) -> None:
    """Raises `ValueError` for what is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def dtype(**values: Any) -> None:
    """Raises `ValueError` for what is neither None nor a dtype to compute with."""
    for name, value in values.items():
        if value is None:
            continue
        try:
            kind = jnp.dtype(value)
        except (TypeError, ValueError):
            kind = jnp.dtype(bool)
        # 8 bits and less do not promote to float32 by themselves.
        if not jnp.issubdtype(kind, jnp.floating) or kind.itemsize < 2:
            raise ValueError(
                f"{name} must be a floating dtype of 16 bits or more, such as "
                f"'bfloat16', got {value!r}"
            )


def distribution(distribute: Any, chunk_bytes: Any = None) -> None:
    """Raises `ValueError` for what cannot spread matrix work or is no chunk size."""
    if chunk_bytes is not None:
        _integer(1, _MOST_BYTES, {"chunk_bytes": chunk_bytes})
    if distribute is not None and not callable(distribute):
        raise ValueError(
            "distribute must be made by optlab.sharding.over_mesh or over_axis, got "
            f"{distribute!r}"
        )


def is_transform(value: Any) -> bool:
    """Whether it is one of optax; `optax.MultiSteps` is none by its type."""
    methods = (getattr(value, name, None) for name in ("init", "update"))
    return all(map(callable, methods)) and not isinstance(value, type)


def transform(**values: Any) -> None:
    """Raises `ValueError` for what is no optax transformation."""
    for name, value in values.items():
        if not is_transform(value):
            raise ValueError(
                f"{name} must be an optax transformation, such as optlab.lion(1e-4), "
                f"got {_brief(value)}"
            )


def factory(**values: Any) -> None:
    """Raises `ValueError` for what makes no optimizer, since it is no function."""
    for name, value in values.items():
        if not callable(value):
            raise ValueError(
                f"{name} must be a function that makes an optimizer, such as "
                f"optlab.lion, got {_brief(value)}"
            )


def _brief(value: Any) -> str:
    """What a value is, on one line whatever it is."""
    name = getattr(value, "__name__", None)
    return f"{name}, not called" if name else " ".join(reprlib.repr(value).split())


def names(**values: Any) -> None:
    """Raises `ValueError` for what is no tuple or list of names.

    A plain string would be taken for its letters.
    """
    for name, value in values.items():
        several = isinstance(value, tuple | list)
        if not several or not all(isinstance(x, str) for x in value):
            raise ValueError(
                f"{name} must be a tuple of names, such as ('mu',), got {value!r}"
            )


def one_of(allowed: tuple[str, ...], **values: Any) -> None:
    """Raises `ValueError` for what is not among the allowed names."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}: {value!r}")
