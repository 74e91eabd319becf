"""How a transform becomes an optimizer: roles, decay, rates and state precision."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import checks
from optlab.dtypes import at_least_float32
from optlab.leaves import over_leaves
from optlab.options import DecayOptions, Rate, SpreadOptions, pick
from optlab.roles import VECTOR, as_rule, leaf_name, tree_groups
from optlab.said import overhearing
from optlab.state import say


def state_dtype(x: Any, dtype: Any = None) -> Any:
    """The dtype of state for a parameter: its own, and at least float32."""
    return at_least_float32(x.dtype) if dtype is None else dtype


def to_state_dtype(tree: Any, dtype: Any = None) -> Any:
    """Casts a tree to the precision that state and arithmetic have."""
    return jax.tree.map(lambda x: x.astype(state_dtype(x, dtype)), tree)


def zero_state(params: Any, dtype: Any = None) -> Any:
    """Zeros like the parameters, in the state's precision."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, state_dtype(p, dtype)), params)


def bias_correction(decay: Any, t: jax.Array, dtype: Any) -> jax.Array:
    """`1 - decay^t`, the weight that a decaying average has gathered by step `t`."""
    return 1 - decay ** t.astype(dtype)


def cast_like(tree: Any, like: Any) -> Any:
    """Casts each leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def in_state_dtype(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transform on gradients and parameters of at least float32.

    optax makes moments in the parameters' dtype, and in bfloat16 a second moment
    with b2 = 0.999 never moves. The updates have the gradients' dtype again.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        return inner.init(to_state_dtype(params))

    def update_fn(updates, state, params=None, **extra):
        wide = None if params is None else to_state_dtype(params)
        new, state = inner.update(to_state_dtype(updates), state, wide, **extra)
        return cast_like(new, updates), state

    return over_leaves(init_fn, update_fn)


def partition(
    transforms: Mapping[Hashable, optax.GradientTransformation],
    labels: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    """`optax.partition` that masks extra arguments too, over ordinary leaves alone."""
    tx = optax.partition(transforms, labels, mask_compatible_extra_args=True)
    return over_leaves(tx.init, tx.update)


def by_role(
    matrices: optax.GradientTransformation,
    others: optax.GradientTransformation,
    roles: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """One transform for the hidden matrices, another one for every other leaf.

    Example:
      >>> import optax, optlab
      >>> tx = optlab.by_role(
      ...     optax.chain(optlab.scale_by_cosmos(rank=8), optax.scale(-1e-2)),
      ...     optax.adamw(1e-3),
      ... )

    Args:
      matrices: for leaves whose role is `Matrix`.
      others: for embeddings, heads and vectors.
      roles: see :mod:`optlab.options`.

    Returns:
      The partition of the two.

    Raises:
      ValueError: `matrices` or `others` is no transform, or `roles` no rule.
    """
    checks.transform(matrices=matrices, others=others)
    rule = as_rule(roles)

    def labels(params):
        return jax.tree.map(
            lambda name: "matrix" if name == "matrix" else "adam",
            tree_groups(params, rule),
        )

    return partition({"matrix": matrices, "adam": others}, labels)


def scale_by_adam(
    b1: Any, b2: Any, eps: Any, mu_dtype: Any = None, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """optax's, whose derivative is finite at a second moment of zero too."""
    least = float(jnp.finfo(jnp.float32).tiny)  # Too little to change a step.
    return optax.scale_by_adam(
        b1, b2, eps, eps_root=least, mu_dtype=mu_dtype, nesterov=nesterov
    )


def descend(
    direction: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule | None,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    roles: Any = None,
    *,
    cautious_decay: bool = False,
    decay_start: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """`-lr (direction + weight_decay p)`, the end of every alias.

    All of it in the state's precision, with one cast to the gradients' dtype. A rate
    of None means no scaling, and so no change of the sign, as everywhere in optax.

    Args:
      direction: the transform, without a rate.
      learning_rate: a number, a schedule or None.
      weight_decay: a number or a schedule. Where it is the plain number 0, `update`
        needs no parameters.
      weight_decay_mask: which leaves decay, see :func:`matrix_optimizer`.
      roles: what "matrices" goes by.
      cautious_decay: whether only entries decay whose direction is not against it.
      decay_start: the first call, from 0, that decays.
    """
    checks.rate(learning_rate=learning_rate)
    checks.decay(weight_decay=weight_decay)
    checks.boolean(cautious_decay=cautious_decay)
    as_rule(roles)  # what is no rule is refused now
    mask = decay_mask(weight_decay_mask, roles)
    steps = optax.chain(
        open_to_masks(direction, "descend"),
        _add_decay(weight_decay, mask, decay_start, cautious_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return in_state_dtype(with_sign(steps, descends=learning_rate is not None))


def with_sign(
    tx: optax.GradientTransformation, *, descends: bool
) -> optax.GradientTransformationExtraArgs:
    """`tx`, of which `init` tells whether its updates descend.

    Of the parts of a chain the last one that tells has the word. optax's own tell
    nothing.
    """
    tx = optax.with_extra_args_support(tx)

    def init_fn(params):
        state = tx.init(params)
        say("descends", params, descends)
        return state

    return optax.GradientTransformationExtraArgs(init_fn, tx.update)


def open_to_masks(
    direction: optax.GradientTransformation, owner: str
) -> optax.GradientTransformationExtraArgs:
    """Where :func:`optlab.cautious` reaches a direction, before rate and decay.

    It comes as two extra arguments of `update`, which every wrapper passes down:
    `direction_mask`, a function of directions and gradients, and `mask_gradients`, the
    gradients that the optimizer was given.

    Args:
      direction: what ascends. In `init` an optimizer of this library is refused.
      owner: what the message says wants it.
    """
    checks.transform(direction=direction)
    direction = optax.with_extra_args_support(direction)

    def init_fn(params):
        say("open to masks", params, True)
        with overhearing() as said:
            state = direction.init(params)
        if any(said.get("descends", {}).values()):
            raise ValueError(
                f"direction: an optimizer, whose updates descend; give {owner} a "
                "direction such as optlab.directions.muon() or optlab.muon(None)"
            )
        return state

    def update_fn(updates, state, params=None, **extra):
        mask = extra.pop("direction_mask", None)
        gradients = extra.pop("mask_gradients", None)
        new, state = direction.update(updates, state, params, **extra)
        return (new if mask is None else mask(new, gradients)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def sign_of_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """1, 0 or -1, as `sign(x y)` where the product does not underflow."""
    return jnp.sign(x) * jnp.sign(y).astype(x.dtype)


def _add_decay(
    weight_decay: Any, mask: Any, start: int, cautious: bool
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights` that says so, and asks for no parameters at 0."""
    is_plain = not (callable(weight_decay) or isinstance(weight_decay, jax.Array))
    is_zero = is_plain and weight_decay == 0

    def from_start(count):
        value: Any = weight_decay(count) if callable(weight_decay) else weight_decay
        return jnp.where(count < start, 0.0, value)

    weights: Any = from_start if start else weight_decay
    inner = optax.add_decayed_weights(weights)

    def init_fn(params):
        say("decay", params, weight_decay)
        return inner.init(params)

    def update_fn(updates, state, params=None):
        if is_zero:  # What there is of a state is a count.
            return updates, jax.tree.map(optax.safe_increment, state)
        if params is None:
            raise ValueError("params: weight decay needs update(grads, state, params)")
        if cautious:  # Where the direction is 0 the weight decays.
            params = jax.tree.map(
                lambda u, p: jnp.where(sign_of_product(u, p) >= 0, p, 0.0),
                updates,
                params,
            )
        return inner.update(updates, state, params)

    tx = optax.GradientTransformation(init_fn, update_fn)
    if mask is None:
        return tx
    tx = optax.masked(tx, mask)

    def init_all(params):
        say("decay", params, 0.0)  # Before those that decay have their say.
        return tx.init(params)

    return optax.GradientTransformation(init_all, tx.update)


def decay_mask(mask: Any, roles: Any = None) -> Callable[[Any], Any] | None:
    """What aliases take as `weight_decay_mask`, as a function or None.

    Args:
      mask: None for all leaves; "matrices" for hidden matrices and tables, but no
        vectors; a tree of booleans, or a function of the parameters that gives one.
      roles: what "matrices" goes by, as everywhere.

    Returns:
      A function that also serves parts of the parameters' tree.

    Raises:
      ValueError: `mask` is nothing of that.
    """
    if mask is None or callable(mask):
        return mask
    if isinstance(mask, str) and mask == "matrices":
        rule = as_rule(roles)
        return lambda params: jax.tree_util.tree_map_with_path(
            lambda path, leaf: rule(path, leaf) is not VECTOR, params
        )
    entries = jax.tree_util.tree_flatten_with_path(mask)[0]
    if not entries or not all(isinstance(x, bool | np.bool_) for _, x in entries):
        raise ValueError(
            "weight_decay_mask must be None, 'matrices', a tree of booleans or a "
            f"function that gives one, got {mask!r}"
        )

    def of(path, _):
        for prefix, value in entries:
            if tuple(path[: len(prefix)]) == tuple(prefix):
                return value
        raise ValueError(f"weight_decay_mask says nothing about {leaf_name(path)!r}")

    return lambda params: jax.tree_util.tree_map_with_path(of, params)


def matrix_optimizer(
    direction: Callable[..., optax.GradientTransformation],
    learning_rate: Rate,
    options: Mapping[str, Any],
    *,
    adam: Callable[..., optax.GradientTransformation] = scale_by_adam,
    decay_start: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """A matrix method as an optimizer: itself on hidden matrices, AdamW elsewhere.

    Args:
      direction: makes the transform of the hidden matrices, without a rate, from
        `roles`, `mu_dtype`, `distribute` and `chunk_bytes`.
      learning_rate: of the hidden matrices, a number or a schedule. None: no scaling,
        and so the direction itself, which ascends.
      options: all of `MatrixOptions`, as :func:`optlab.options.takes` gives them, and
        perhaps `step`: what makes the matrices' step of a direction, a rate and
        `roles=` in the place of :func:`descend`, such as :func:`optlab.hyperball`.
      adam: what makes the other leaves' direction, from `adam_b1`, `adam_b2`,
        `adam_eps` and `mu_dtype`.
      decay_start: the first call, from 0, that decays.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    given: dict[str, Any] = dict(options)
    b1, b2, eps = (given[name] for name in ("adam_b1", "adam_b2", "adam_eps"))
    checks.fraction(adam_b1=b1, adam_b2=b2)
    checks.non_negative(adam_eps=eps)
    checks.dtype(mu_dtype=given["mu_dtype"])
    decay = pick(DecayOptions, given)
    rates = {
        "learning_rate": learning_rate,
        "adam_learning_rate": given["adam_learning_rate"],
    }
    decays = {
        "weight_decay": decay.pop("weight_decay", 0.0),
        "adam_weight_decay": given["adam_weight_decay"],
    }
    # None has the hidden matrices' value.
    rates, decays = (
        {name: next(iter(own.values())) if x is None else x for name, x in own.items()}
        for own in (rates, decays)
    )
    checks.rate(**rates)
    checks.decay(**decays)
    others = adam(b1, b2, eps, mu_dtype=given["mu_dtype"])
    end = partial(descend, **decay, decay_start=decay_start)
    matrices = direction(**pick(SpreadOptions, given))
    if "step" in given:
        own = given["step"](matrices, rates["learning_rate"], roles=given["roles"])
    else:
        own = end(matrices, rates["learning_rate"], decays["weight_decay"])
    return by_role(
        own,
        end(others, rates["adam_learning_rate"], decays["adam_weight_decay"]),
        given["roles"],
    )


def current_learning_rate(state: Any) -> dict[str, jax.Array]:
    """The rates in force in an optimizer's state, by the name of their argument.

    Reads the states of `optax.inject_hyperparams`, wherever they are in the tree. A
    name that several of them hold gets the keys of its dictionaries in front:
    `embeddings/learning_rate`, `blocks/learning_rate`.

    Returns:
      For instance `{"learning_rate": ..., "adam_learning_rate": ...}`; empty if
      nothing was injected.
    """
    found = list(_injected(state, ()))
    names = [name for _, name, _ in found]
    return {
        "/".join((*group, name) if names.count(name) > 1 else (name,)): value
        for group, name, value in found
    }


def _injected(tree: Any, group: tuple[str, ...]) -> Iterator[tuple[Any, str, Any]]:
    kinds = (optax.InjectStatefulHyperparamsState, optax.InjectHyperparamsState)
    for path, node in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, kinds)
    ):
        if isinstance(node, kinds):
            keys = (str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
            inside = (*group, *keys)
            for name, value in node.hyperparams.items():
                if name.endswith("learning_rate"):
                    yield inside, name, value
            yield from _injected(node.inner_state, inside)
