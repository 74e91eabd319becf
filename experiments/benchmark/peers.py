"""What ours is measured beside: optax's Muon, as an entry of the registry."""

import math
from typing import Any

import jax
import optax

import optlab
from optlab.compose import matrix_optimizer
from optlab.roles import as_rule, tree_roles, tree_views


def optax_muon(
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
    """optax's Muon behind our roles, with an update RMS of 0.2 as ours has it.

    Its default looks at the rank alone. It takes no `distribute`: on a mesh the
    compiler is left to cut its products.
    """
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


def register() -> None:
    """Adds them to this process's registry, where the suites and the runner look."""
    optlab.register("optax_muon", optax_muon)
