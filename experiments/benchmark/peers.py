"""What ours is measured beside: optax's Muon, as two entries of the registry."""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Unpack

import jax
import optax

import optlab
from optlab.compose import matrix_optimizer
from optlab.options import MatrixOptions, Number, Rate, takes, takes_as
from optlab.roles import as_rule, tree_roles, tree_views


@takes(MatrixOptions, without=("distribute", "chunk_bytes"))
def optax_muon(
    learning_rate: Rate,
    *,
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    **options: Unpack[MatrixOptions],
) -> optax.GradientTransformationExtraArgs:
    """optax's Muon behind our roles, with an update RMS of 0.2 as ours has it.

    Its default looks at the rank alone. It takes no `distribute`: on a mesh the
    compiler is left to cut its products.

    Args:
      learning_rate: of the hidden matrices, a number or a schedule.
      momentum: decay of the momentum.
      nesterov: whether the momentum looks one gradient ahead.
      ns_steps: Newton-Schulz steps.
      **options: see :mod:`optlab.options`.
    """
    direction = partial(
        _direction, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps
    )
    return matrix_optimizer(direction, learning_rate, options)


@takes_as(optax_muon)
def optax_muon_main(
    learning_rate: Rate, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """optax's Muon as on its main branch since April 2026, "optax main".

    There the Newton-Schulz steps are one loop, where release 0.2.8 unrolls them, for
    several times the temporary memory and the time to compile.

    Args:
      **options: of :func:`optax_muon`.
    """
    tx = optax_muon(learning_rate, **options)

    def update(updates, state, params=None, **extra):
        with rolled_loops():
            return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@contextlib.contextmanager
def rolled_loops() -> Iterator[None]:
    """In it, `jax.lax.fori_loop` unrolls nothing: that is all that main differs in."""
    given = jax.lax.fori_loop

    def rolled(*args: Any, unroll: Any = None, **kwargs: Any) -> Any:
        del unroll
        return given(*args, **kwargs)

    jax.lax.fori_loop = rolled
    try:
        yield
    finally:
        jax.lax.fori_loop = given


def _direction(
    *, momentum: Any, nesterov: bool, ns_steps: int, roles: Any, mu_dtype: Any
) -> optax.GradientTransformation:
    rule = as_rule(roles)

    def numbers(tree):
        return jax.tree.map(
            lambda role: optax.contrib.MuonDimensionNumbers(role.rows, role.cols),
            tree_roles(tree, rule),
        )

    def match_rms(updates, params=None):
        del params
        return jax.tree.map(
            lambda u, view: 0.2 * math.sqrt(max(view.m, view.n)) * u,
            *(updates, tree_views(updates, rule, "optax_muon")),
        )

    return optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=ns_steps,
            beta=momentum,
            mu_dtype=mu_dtype,
            nesterov=nesterov,
            weight_dimension_numbers=numbers,
        ),
        optax.stateless(match_rms),
    )


def register() -> None:
    """Adds them to this process's registry, where the suites and the runner look."""
    optlab.register("optax_muon", optax_muon)
    optlab.register("optax_muon_main", optax_muon_main)
