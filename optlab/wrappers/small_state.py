"""Moments in 8 bits or in bfloat16 between steps, and weights in bfloat16."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import state_dtype
from optlab.leaves import over_leaves
from optlab.matrices import lowbit
from optlab.roles import leaf_name
from optlab.state import owning_parameter, state_leaves

# Fields of the states of this library and of optax.
_FIRST = ("mu", "trace", "momentum", "ema", "m")
_SECOND = ("nu", "nu_max", "sum_of_squares", "n")


class SmallStateState(NamedTuple):
    """State of a transform with small moments.

    `inner` is the transform's, with codes or bfloat16 in the place of its moments;
    `scales` has their groups' scales at the same places and nothing elsewhere.
    """

    count: jax.Array  # ()
    key: Any  # (2,), of the rounding; () where there is none
    inner: optax.OptState
    scales: Any


def small_state(
    tx: optax.GradientTransformation,
    dtype: Literal["int8", "bfloat16"] = "int8",
    *,
    group_size: int = 32,
    companding: bool = True,
    scale_dtype: DTypeLike = jnp.bfloat16,
    first_moments: tuple[str, ...] = _FIRST,
    second_moments: tuple[str, ...] = _SECOND,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the moments of a transform in 8 bits, or in bfloat16, between its steps.

    A moment is an array of the state with the shape of its parameter, in a field of
    one of these names. A step decodes the moments, lets `tx` work in its own
    precision, and codes the new ones. In 8 bits a group of neighbours along the last
    axis shares a scale: first moments are int8 with codes that are denser near 0, of
    second moments the root is coded in uint8::

        mu:  z = x / scale ; y = 2 z / (1 + |z|) ; q = floor(127 y + 1/2)
        nu:  z = sqrt(x) / scale ;                 q = floor(255 z + 1/2), at least 1

    In bfloat16 they are rounded up or down at random, so that what is too small for a
    spacing counts on average: a second moment with b2 = 0.999 does not stand still.

    Deviations from FlashOptim, databricks/flashoptim at commit 8b2d966: groups do not
    run over the ends of rows; scales are bfloat16, where float16 makes 0 of a group
    below 3e-8 and infinity of one above 65504; and a second moment above 0 never
    becomes 0, since `mu / eps` would be the step of an entry without a gradient.

    Example:
      >>> import optlab
      >>> tx = optlab.small_state(optlab.lion(1e-4))

    Args:
      tx: an optimizer or a transform.
      dtype: "int8" or "bfloat16".
      group_size: entries with one scale, of "int8".
      companding: whether codes of first moments are denser near 0; the RMS error is
        then 0.6% instead of 1.1% of a typical momentum.
      scale_dtype: of the scales: 16 bits are 0.5 bits for each number.
      first_moments, second_moments: names of the state's fields.
      seed: of the rounding to bfloat16; the key is in the state.

    Returns:
      The transform. State, bytes and layouts of the moments are those of the codes; the
      numbers after a restart are the same to the bit.

    Raises:
      ValueError: an argument is out of range or `tx` no transform; or, in `init`, `tx`
        has no such moments.

    References:
      *FlashOptim*, `2602.23349 <https://arxiv.org/abs/2602.23349>`_, 2026.
    """
    checks.transform(tx=tx)
    checks.one_of(("int8", "bfloat16"), dtype=dtype)
    checks.positive_int(group_size=group_size)
    checks.boolean(companding=companding)
    checks.dtype(scale_dtype=scale_dtype)
    checks.names(first_moments=first_moments, second_moments=second_moments)
    checks.seed(seed=seed)
    inner = optax.with_extra_args_support(tx)
    eight = dtype == "int8"

    def kinds(state: Any, params: Any) -> list[str]:
        """Of each array of the state of `tx`: "first", "second" or ""."""
        owners = {
            tuple(path): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        return [_kind(leaf, owners) for leaf in state_leaves(state)]

    def _kind(leaf: Any, owners: Any) -> str:
        owner = owning_parameter(leaf.path, owners)
        if owner is None and () in owners:  # The parameters are one array.
            owner = ()
        if owner is None or tuple(leaf.value.shape) != owners[owner]:
            return ""
        field = leaf.path[len(leaf.path) - len(owner) - 1 :][:1]
        name = leaf_name(field) if field else ""
        if name in first_moments:
            return "first"
        return "second" if name in second_moments else ""

    def small(state: Any, params: Any, key: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(state)

        def coded(i: int, x: Any, kind: str) -> tuple[Any, Any]:
            if not kind:
                return x, optax.MaskedNode()
            if not eight:
                own = jax.random.fold_in(key, i)
                return lowbit.round_stochastically(x, own), optax.MaskedNode()
            return lowbit.quantize(
                x,
                signed=kind == "first",
                softsign=companding and kind == "first",
                sqrt=kind == "second",
                group_size=group_size,
                scale_dtype=scale_dtype,
                least=int(kind == "second"),
            )

        pairs = [
            coded(i, x, kind)
            for i, (x, kind) in enumerate(
                zip(leaves, kinds(state, params), strict=True)
            )
        ]
        codes, scales = ([pair[k] for pair in pairs] for k in (0, 1))
        return treedef.unflatten(codes), treedef.unflatten(scales)

    def wide(state: SmallStateState, params: Any, like: Any) -> Any:
        codes, treedef = jax.tree.flatten(state.inner)

        def decoded(x: Any, scale: Any, kind: str, dtype: Any) -> Any:
            if not kind:
                return x
            if eight:
                x = lowbit.dequantize(
                    x,
                    scale,
                    softsign=companding and kind == "first",
                    sqrt=kind == "second",
                    group_size=group_size,
                )
            return x.astype(dtype)

        rows = zip(
            codes,
            treedef.flatten_up_to(state.scales),
            kinds(state.inner, params),
            (x.dtype for x in jax.tree.leaves(like)),
            strict=True,
        )
        return treedef.unflatten([decoded(*row) for row in rows])

    def init_fn(params):
        state = inner.init(params)
        if jax.tree.leaves(params) and not any(kinds(state, params)):
            raise ValueError(
                "small_state: the state of tx has no array like its parameter in a "
                f"field named {', '.join((*first_moments, *second_moments))}; name its "
                "fields in first_moments and second_moments"
            )
        key = jax.random.key(seed, impl="threefry2x32")
        data = jax.random.key_data(key)
        codes, scales = small(state, params, key)
        data = () if eight else data
        return SmallStateState(jnp.zeros([], jnp.int32), data, codes, scales)

    def update_fn(updates, state, params=None, **extra):
        like = jax.eval_shape(inner.init, updates if params is None else params)
        before = wide(state, updates, like)
        new, after = inner.update(updates, before, params, **extra)
        key = None
        if not eight:
            key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
            key = jax.random.fold_in(key, state.count)
        codes, scales = small(after, updates, key)
        return new, SmallStateState(state.count + 1, state.key, codes, scales)

    return over_leaves(init_fn, update_fn, real="small_state")


class SplitWeightsState(NamedTuple):
    """State of split weights: what bfloat16 leaves of them, and the transform's."""

    rest: optax.Params  # codes, as the parameters
    inner: optax.OptState


def split_weights(
    tx: optax.GradientTransformation, *, bits: Literal[8, 16] = 8
) -> optax.GradientTransformationExtraArgs:
    """Trains bfloat16 weights as if they were float32, with the rest in the state.

    A weight is its bfloat16 number and a code of the rest, in parts of half a spacing:
    3 bytes for a relative error of 2^-17, or 4 for 2^-24. A step joins the two, lets
    `tx` work on float32, and splits the new weight. Steps that are too small for
    bfloat16 add up in the rest; what is below half a code, 2^-17 of the weight, or
    2^-25 with 16 bits, is lost.

    The updates are float32, so that `optax.apply_updates` gives the new bfloat16 weight
    exactly: it stands outermost, and nothing may cast or scale its updates. `init` may
    get the weights in float32, before they are rounded, and then keeps the rest.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.full((4, 3), 1.001)}
      >>> tx = optlab.split_weights(optlab.lion(1e-5))
      >>> state = tx.init(params)
      >>> params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params["w"].dtype)
      bfloat16

    Args:
      tx: any optimizer.
      bits: of the rest, 8 or 16.

    Returns:
      The transform. `update` needs the parameters.

    Raises:
      ValueError: `bits` is another number or `tx` no transform; or, in `update`, a
        parameter is not bfloat16.
    """
    checks.transform(tx=tx)
    if bits not in (8, 16) or isinstance(bits, bool):
        raise ValueError(f"bits must be 8 or 16, got {bits!r}")
    inner = optax.with_extra_args_support(tx)

    def init_fn(params):
        full = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        rest = jax.tree.map(lambda p: lowbit.split(p, jnp.bfloat16, bits)[1], full)
        return SplitWeightsState(rest, inner.init(full))

    def update_fn(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("params: split_weights needs update(grads, state, params)")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.dtype != jnp.bfloat16:
                raise ValueError(
                    f"params: {leaf_name(path)!r} is {leaf.dtype}; split_weights "
                    "trains bfloat16 weights, so cast the parameters after init"
                )
        full = jax.tree.map(lowbit.join, params, state.rest)
        grads = jax.tree.map(lambda g: g.astype(state_dtype(g)), updates)
        steps, inner_state = inner.update(grads, state.inner, full, **extra)

        def move(w, step, p):
            new, rest = lowbit.split((w + step).astype(jnp.float32), jnp.bfloat16, bits)
            return new.astype(jnp.float32) - p.astype(jnp.float32), rest

        moved = jax.tree.map(move, full, steps, params)
        new, rest = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0)), moved
        )
        return new, SplitWeightsState(rest, inner_state)

    return over_leaves(init_fn, update_fn, real="split_weights")
