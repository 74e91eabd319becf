"""Numbers of an optimizer that live in its state: `optax.inject_hyperparams`, set up.

Which arguments may be arrays, a factory's signature says. Those are arguments without
a default or with one that is a plain float, and those that take a schedule. What is
annotated as `float`, `int`, `bool` or `str` must be plain.
"""

import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import checks
from optlab.signatures import own_names

_PLAIN = frozenset({float, int, bool, str, "float", "int", "bool", "str"})


def inject_hyperparams(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A factory whose numbers stand in the state, where a loop may change them.

    Numbers and schedules that the caller gives are injected, in float32. What sets
    shapes, loops, choices, dtypes, roles or masks stays as it is, and so do the
    defaults of what is not given and what goes into a factory's `**options`.

    Example:
      >>> import jax.numpy as jnp, optlab
      >>> tx = optlab.inject_hyperparams(optlab.cosmos)(learning_rate=1e-2, rank=8)
      >>> state = tx.init({"kernel": jnp.ones((6, 4))})
      >>> state.hyperparams["learning_rate"] = jnp.float32(1e-3)
      >>> print(optlab.current_learning_rate(state)["learning_rate"])
      0.001

    Args:
      factory: `factory(learning_rate, **kwargs)`, of this library, of optax or any
        other.

    Returns:
      The factory's like, with its signature. It raises what the factory raises.

    Raises:
      ValueError: `factory` is no function, such as an optimizer that was made already.
    """
    checks.factory(factory=factory)
    signature = inspect.signature(factory)
    named = factory.func if isinstance(factory, functools.partial) else factory
    name = getattr(named, "__name__", "factory")

    @functools.wraps(factory)
    def injected(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        kwargs = own_names(factory, kwargs)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        values = {
            n: float(x) if isinstance(x, numbers.Real) else x
            for n, x in given.arguments.items()
            if _is_injected(signature.parameters[n], x)
        }

        def made(**chosen: Any) -> optax.GradientTransformation:
            call = signature.bind(*args, **kwargs)
            call.arguments.update(chosen)
            return factory(*call.args, **call.kwargs)

        # Arrays in the place of numbers are not checked: the first numbers are now.
        made(**{n: _first(x) for n, x in values.items()})
        made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in values]
        )
        make = optax.inject_hyperparams(made, hyperparam_dtype=jnp.float32)
        return make(**values)

    return injected


def takes_array(parameter: inspect.Parameter) -> bool:
    """Whether an argument is by its signature a number that may be an array."""
    if parameter.annotation in _PLAIN:
        return False
    return parameter.default is parameter.empty or isinstance(parameter.default, float)


def _is_injected(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether a value that was given for an argument is a number for the state.

    Of `*args` and `**options` a signature says nothing: they stay as they are.
    """
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if isinstance(value, bool) or parameter.kind in several:
        return False
    number = isinstance(value, numbers.Real | jax.Array | np.ndarray)
    if not number and not callable(value):
        return False
    if takes_array(parameter) or _takes_schedules(parameter.annotation):
        return True
    return number and parameter.default is None and parameter.annotation not in _PLAIN


def _first(value: Any) -> Any:
    """The number itself, or a schedule's at step 0."""
    schedule: Any = value
    return float(schedule(0)) if callable(value) else value


def _takes_schedules(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return "Schedule" in annotation
    return set(get_args(optax.ScalarOrSchedule)) <= set(get_args(annotation))
