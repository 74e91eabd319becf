"""What the methods are compared with: optax's AdamW, SGD and Muon, as entries."""

import math
from typing import Any

import jax
import optax

from optlab import checks
from optlab.compose import descend, matrix_optimizer, scale_by_adam
from optlab.matrices.buckets import check_layout
from optlab.roles import as_rule, tree_roles, tree_views


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
    direction = scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
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
    adam_weight_decay: optax.ScalarOrSchedule | None = None,
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
