"""Checks of arguments that are plain numbers.

Rates and betas may also be traced arrays, which `optax.inject_hyperparams` passes;
those go through unseen.
"""

import math
import numbers
from typing import Any

import jax
from jax.sharding import AxisType


def _plain(value: Any) -> bool:
    return isinstance(value, numbers.Number)


def positive_int(**values: Any) -> None:
    """Raises `ValueError` for what is no integer of at least one."""
    _integer(1, values)


def non_negative_int(**values: Any) -> None:
    """Raises `ValueError` for what is no integer of at least zero."""
    _integer(0, values)


def _integer(least: int, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name} must be a Python integer: it sets shapes or loops; under "
                "optax.inject_hyperparams name it in static_args"
            )
        if not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def positive(**values: Any) -> None:
    """Raises `ValueError` for plain numbers that are not above zero and finite."""
    for name, value in values.items():
        if _plain(value) and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be > 0, got {value!r}")


def non_negative(**values: Any) -> None:
    """Raises `ValueError` for plain numbers that are negative or not finite."""
    for name, value in values.items():
        if _plain(value) and not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be >= 0, got {value!r}")


def fraction(**values: Any) -> None:
    """Raises `ValueError` for plain numbers outside `[0, 1)`."""
    for name, value in values.items():
        if _plain(value) and not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def one_of(allowed: tuple[str, ...], **values: Any) -> None:
    """Raises `ValueError` for what is not among the allowed names."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}: {value!r}")


def auto_axes(mesh: Any, spec: Any = None) -> None:
    """Raises `ValueError` if a mesh has axes that are not Auto, or a spec names some.

    On an Explicit axis, jax's default, products of matrices that are cut up raise.
    """
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    named = kinds if spec is None else jax.tree.leaves(tuple(spec))
    explicit = [n for n in named if kinds.get(n, AxisType.Auto) != AxisType.Auto]
    if explicit:
        raise ValueError(
            f"the mesh's axes {explicit} are not Auto; optlab.sharding.make_mesh makes "
            "meshes that the compiler shards over"
        )
