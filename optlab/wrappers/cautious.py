"""Steps without the entries that would climb along this step's own gradient."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from optlab import checks
from optlab.compose import sign_of_product
from optlab.leaves import over_leaves
from optlab.matrices.norms import tree_layers
from optlab.options import Roles
from optlab.roles import as_rule, leaf_name
from optlab.state import make_abstract_state

# What kept entries are multiplied by, from how many are kept, how many there are, and
# how many of these have a product other than 0.
_RESCALES: dict[str, Callable[..., jax.Array]] = {
    "mean": lambda kept, size, live: 1 / jnp.maximum(kept / size, 1e-3),
    "sum": lambda kept, size, live: size / (kept + 1),
    "live": lambda kept, size, live: jnp.maximum(live, 1) / jnp.maximum(kept, 1),
    "none": lambda kept, size, live: jnp.ones_like(kept),
}
# As the recorded runs of the authors' code have it in their data.
_RESCALES["1/max(mean(mask), 1e-3)"] = _RESCALES["mean"]
_RESCALES["size/(sum(mask) + 1)"] = _RESCALES["sum"]


def cautious(
    tx: optax.GradientTransformation,
    *,
    rescale: Literal["mean", "sum", "live", "none"] | str = "mean",
    descends: bool = False,
    roles: Roles = None,
) -> optax.GradientTransformationExtraArgs:
    """Sets those entries of a direction to 0 that point against the gradient.

    With the gradient `g` of this step and the direction `u`, for every layer::

        k = 1 where u g > 0, else 0
        s = 1 / max(mean(k), 1e-3)
        W <- W (1 - lr wd) - lr s k u

    Around an optimizer of this library, also inside a chain, a partition or another
    wrapper, the direction is masked where it is made, before rate and decay: a weight
    decays as without. Around :func:`optlab.hyperball` it is masked before the step on
    the sphere. What other transforms give is masked as it comes.

    Example:
      >>> import optlab
      >>> tx = optlab.cautious(optlab.root(2e-2, weight_decay=0.1))

    Args:
      tx: an optimizer or a direction.
      rescale: `s`. "mean": as above, C-Optim's for AdamW. "sum": C-Optim's for Lion,
        `size / (sum(k) + 1)`. "live": the entries where `u g` is not 0 over those that
        are kept, so that silent rows of a table do not make the others' steps larger.
        "none": 1. The first two also by their formulas, as the
        recorded data have them.
      descends: whether transforms that are not of this library give steps, such as
        `optax.adamw`, and not directions, such as `optax.scale_by_adam`.
      roles: see :mod:`optlab.options`. Means are over a matrix, a table or a vector,
        each slice of a stack alone.

    Returns:
      The transform, with the state of `tx`.

    Raises:
      ValueError: an argument is out of range, or `tx` is no transform.

    References:
      Liang et al., `Cautious Optimizers <https://arxiv.org/abs/2411.16085>`_, 2024.
    """
    checks.transform(tx=tx)
    checks.one_of(tuple(_RESCALES), rescale=rescale)
    checks.boolean(descends=descends)
    factor = _RESCALES[rescale]
    rule = as_rule(roles)
    inner = optax.with_extra_args_support(tx)

    def mask(directions, gradients, sign=1):
        """Where `sign u g > 0`."""
        leaves, treedef = jax.tree.flatten(directions)
        masked = []
        for u, g, layer in zip(
            *(leaves, treedef.flatten_up_to(gradients)),
            tree_layers(directions, rule, 1.0),
            strict=True,
        ):
            product = sign * sign_of_product(u, g)
            keep = product > 0
            size = 1
            for axis in layer.axes:
                size *= u.shape[axis]
            kept, live = (
                jnp.sum(x, layer.axes, u.dtype, keepdims=True)
                for x in (keep, product != 0)
            )
            scale = factor(kept, size, live).astype(u.dtype)
            # What is NaN is no 0.
            masked.append(jnp.where(keep | jnp.isnan(product), scale * u, 0))
        return treedef.unflatten(masked)

    def update_fn(updates, state, params=None, **extra):
        inside = make_abstract_state(inner, updates)[1].get("open to masks", {})
        masked = set()

        def mask_and_tell(directions, gradients):
            leaves = jax.tree_util.tree_leaves_with_path(directions)
            masked.update(tuple(path) for path, _ in leaves)
            return mask(directions, gradients)

        more = {"direction_mask": mask_and_tell, "mask_gradients": updates}
        new, state = inner.update(updates, state, params, **(extra | more))
        if missed := inside.keys() - masked:
            raise ValueError(
                f"cautious: the direction of {leaf_name(min(missed, key=leaf_name))!r} "
                "is made inside a wrapper that passes no extra arguments on; put "
                "cautious inside of that one"
            )
        outside = mask(new, updates, -1 if descends else 1)
        return jax.tree_util.tree_map_with_path(
            lambda path, u, v: u if tuple(path) in inside else v, new, outside
        ), state

    return over_leaves(inner.init, update_fn, real="cautious")
