"""What the methods are compared with: optax's AdamW, SGD and Muon, as entries."""

import math
from typing import Any

import jax
import optax

from optlab import checks
from optlab.compose import descend, matrix_optimizer, scale_by_adam
from optlab.leaves import over_leaves
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
    roles: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's AdamW with state of at least float32.

    `roles` is what `weight_decay_mask="matrices"` goes by, and nothing else. Every leaf
    decays by default.
    """
    checks.fraction(b1=b1, b2=b2)
    checks.non_negative(eps=eps)
    checks.dtype(mu_dtype=mu_dtype)
    direction = scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return descend(direction, learning_rate, weight_decay, weight_decay_mask, roles)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Any = 0.9,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    roles: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax's SGD with momentum, and decoupled decay, of every leaf by default.

    `roles` is what `weight_decay_mask="matrices"` goes by, and nothing else.
    """
    checks.fraction(momentum=momentum)
    checks.boolean(nesterov=nesterov)
    direction = optax.trace(momentum, nesterov)
    return descend(direction, learning_rate, weight_decay, weight_decay_mask, roles)


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
    default looks at the rank alone. The other leaves get AdamW, as with our other
    matrix methods, where `optax.contrib.muon` gives them AdamW with Nesterov's
    momentum: a first step of 0.0100 at a rate of 0.01, against 0.0147. Every leaf
    decays by default.
    """
    checks.fraction(momentum=momentum)
    checks.newton_schulz_steps(ns_steps=ns_steps)
    checks.boolean(nesterov=nesterov)
    checks.dtype(mu_dtype=mu_dtype)
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
    direction = optax.with_extra_args_support(direction)
    return matrix_optimizer(
        over_leaves(direction.init, direction.update, real="muon"),
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
