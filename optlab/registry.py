"""Optimizers by name, each with the extra arguments that its `update` needs.

A factory is `factory(learning_rate, **its keyword arguments)`. A training loop reads
the factory's signature for the arguments and `needs` for what it has to compute, so
that it never asks for a name.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from optlab import checks
from optlab.compose import descend, matrix_optimizer
from optlab.optimizers.adahessian import adahessian
from optlab.optimizers.cosmos import cosmos
from optlab.optimizers.lanton import lanton
from optlab.optimizers.lion import lion
from optlab.optimizers.root import root
from optlab.optimizers.scion import scion
from optlab.optimizers.soap import soap
from optlab.optimizers.spam import spam
from optlab.optimizers.stable_spam import stable_spam
from optlab.roles import Matrix, as_rule, check_layout, tree_roles, tree_views

Needs = Callable[[Mapping[str, Any]], tuple[str, ...]]


class Entry(NamedTuple):
    """An optimizer of the registry.

    Attributes:
      name: what it is called.
      factory: `factory(learning_rate, **kwargs)` to an optax transformation.
      needs: extra arguments of `update` that the caller must supply, such as
        `("hessian_diag",)`, where the factory has its defaults.
      needs_for: the same as a function of a mapping of the factory's keyword arguments.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    needs: tuple[str, ...]
    needs_for: Needs


_ENTRIES: dict[str, Entry] = {}


def register(name: str, factory: Callable, needs: tuple[str, ...] | Needs = ()) -> None:
    """Adds an optimizer from outside, for the runner and the sweeps to use.

    Args:
      name: to call it by.
      factory: `factory(learning_rate, **kwargs)` to an optax transformation.
      needs: names of the extra arguments that `update` must get, or a function of the
        keyword arguments, as a mapping, that gives them.

    Raises:
      ValueError: the name is taken by another factory.
    """
    if name in _ENTRIES and _ENTRIES[name].factory is not factory:
        raise ValueError(f"name: {name!r} is registered already")
    needs_for = needs if callable(needs) else partial(_always, tuple(needs))
    _ENTRIES[name] = Entry(name, factory, needs_for({}), needs_for)


def _always(needs: tuple[str, ...], _: Mapping[str, Any]) -> tuple[str, ...]:
    return needs


def names() -> list[str]:
    """The names of all optimizers, sorted."""
    return sorted(_ENTRIES)


def get(name: str) -> Entry:
    """The entry of that name.

    Raises:
      ValueError: there is none; the message holds the nearest name and all others.
    """
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, _ENTRIES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown optimizer {name!r}: {hint}there are {', '.join(names())}"
        )
    return _ENTRIES[name]


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Any = 0.9,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's AdamW with state of at least float32."""
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps)
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return descend(direction, learning_rate, weight_decay, weight_decay_mask)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Any = 0.9,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's SGD with momentum, and decoupled decay."""
    checks.fraction(momentum=momentum)
    direction = optax.trace(momentum, nesterov)
    return descend(direction, learning_rate, weight_decay, weight_decay_mask)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Any = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    roles: Any = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: Any = 0.9,
    adam_b2: Any = 0.95,
    adam_eps: Any = 1e-8,
    adam_weight_decay: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's Muon behind our roles, with an update RMS of 0.2 like Moonlight's.

    Stacked layers and convolutions are orthogonalized and embeddings are not; its own
    default looks at the rank alone.
    """
    checks.fraction(momentum=momentum)
    checks.positive_int(ns_steps=ns_steps)
    rule = as_rule(roles)

    def numbers(tree):
        check_layout(tree)
        return jax.tree.map(
            lambda role: optax.contrib.MuonDimensionNumbers(role.rows, role.cols),
            tree_roles(tree, rule),
            is_leaf=lambda x: isinstance(x, Matrix),
        )

    def match_rms(updates, params=None):
        del params
        return jax.tree.map(
            lambda u, view: 0.2 * math.sqrt(max(view.m, view.n)) * u,
            *(updates, tree_views(updates, rule, "muon")),
        )

    direction = optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=ns_steps,
            beta=momentum,
            mu_dtype=mu_dtype,
            nesterov=nesterov,
            weight_dimension_numbers=numbers,
        ),
        optax.stateless(match_rms),
    )
    return matrix_optimizer(
        direction,
        learning_rate,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        roles=roles,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
    )


def _lanton_needs(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    return ("other_grads",) if kwargs.get("noise") == "paired" else ()


register("adahessian", adahessian, needs=("hessian_diag",))
register("adamw", adamw)
register("cosmos", cosmos)
register("lanton", lanton, needs=_lanton_needs)
register("lion", lion)
register("muon", muon)
register("scion", scion)
register("root", root)
register("sgd", sgd)
register("soap", soap)
register("spam", spam)
register("stable_spam", stable_spam)
