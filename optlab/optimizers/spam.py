"""SPAM: Adam that clips spikes of the gradient and forgets its moments at intervals.

For every entry of every leaf with gradient `g` at step `t = 1, 2, ...`, with
`T = reset_interval`, `N = warmup_steps`, `theta = spike_threshold`,
`k = clip_start_step` and `j = t mod T`::

    if j == 0:  m = v = 0                           before this step's moments
    if t >= k and j >= k:  g <- sign(g) min(|g|, sqrt(theta v_{t-1}))   where v > 0
    m = b1 m + (1-b1) g ;  v = b2 v + (1-b2) g^2
    direction = s_t sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps)
    s_t = 1 - 0.99 (1 + cos(pi j/(N+1)))/2  for t >= T and j < N, else 1

Sparse momentum (`density < 1`) keeps `k = floor(density n)` entries of each row of a
hidden `(m, n)` matrix, and updates no others. The `n` columns are cut into `k` runs of
`n // k` or one more, and each row draws one column of each run, independently: no
sort, no index twice, and ascending indices. Where the runs are not equal they start at
a random column, so that every entry has the probability `k / n`. The columns are a
function of `key`, number of resets and leaf: drawn again at each reset, recomputed in
between (a random number for each entry kept), never stored. The state is `(m, k)`, so
its rows shard as the parameter's do.

Held against the authors' code, TianjinYellow/SPAM-Optimizer at commit e8185fb.
Deviations:

* where v is 0 nothing is clipped; the authors' code sets g to 0 there, so that an entry
  which is silent through the first k-1 steps of a window (a rare token) is frozen to
  its end.
* sparse momentum keeps the same number of entries in every row, at least one, and no
  two of one run; the authors' code draws them from the whole matrix and keeps a dense
  mask.
* decay is optax's, `lr (direction + wd p)`; the authors' comes after the update,
  O(lr^2) apart, and misses sparse leaves.
* `reset_interval = 0` means never; the authors' code divides by it.
* with `reset_interval = 1` every step is a reset: there is no momentum, nothing is
  clipped, and `s_t` stays at 0.01 if `warmup_steps` is above 0, from the first step on.
  That follows from the equations; it was not held against their code.

References:
  Huang et al., `SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training
  <https://arxiv.org/abs/2501.06842>`_, 2025.
"""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from optlab import checks
from optlab.compose import (
    bias_correction,
    cast_like,
    descend,
    state_dtype,
    zero_state,
)
from optlab.leaves import over_leaves
from optlab.matrices.linalg import safe_sqrt
from optlab.options import (
    DecayOptions,
    LeafOptions,
    Number,
    Rate,
    Roles,
    StateOptions,
    pick,
    takes,
)
from optlab.roles import Matrix, View, as_rule, leaf_name
from optlab.schedules import share_of
from optlab.state import Observed
from optlab.wrappers.spikes import (
    check_clipping,
    clip_to_moment,
    restart_warmup,
    window_position,
)


class ScaleBySpamState(NamedTuple):
    """State of SPAM; sparse leaves hold `(stack..., m, k)` numbers."""

    count: jax.Array  # ()
    key: jax.Array  # (2,), the data of a threefry key
    mu: optax.Updates  # m
    nu: optax.Updates  # v


class _Columns(NamedTuple):
    """The entries of a leaf that sparse momentum keeps in this window."""

    view: View
    index: jax.Array  # (S, m, k), ascending but for the turn
    run: jax.Array | np.ndarray  # (n,), which of the k runs a column belongs to

    @classmethod
    def draw(cls, key: jax.Array, view: View, like: jax.Array) -> "_Columns":
        """The choice for state of the shape of `like`, `(S, m, k)`."""
        n, shape, kept = view.n, like.shape, like.shape[-1]
        edges = np.arange(kept + 1, dtype=np.int64) * n // kept
        widths = np.broadcast_to(np.diff(edges).astype(np.float32), shape)
        run = np.repeat(np.arange(kept, dtype=np.int32), np.diff(edges))
        turn_key, key = jax.random.split(key)
        inside = jax.random.uniform(key, shape, jnp.float32) * widths
        start = jnp.broadcast_to(edges[:-1].astype(np.int32), shape)
        index = start + inside.astype(jnp.int32)
        if n % kept == 0:
            return cls(view, index, run)
        turn = jax.random.randint(turn_key, (), 0, n, jnp.int32)
        return cls(view, (index + turn) % n, jnp.roll(run, turn))

    def gather(self, leaf: jax.Array) -> jax.Array:
        """The kept entries of a leaf, `(stack..., m, k)`."""
        kept = jnp.take_along_axis(self.view.matrices(leaf), self.index, axis=-1)
        return self.view.unflat(kept)

    def spread(self, kept: jax.Array) -> jax.Array:
        """A leaf with these entries and zeros; columns ask their run, no scatter."""
        values = jnp.take(self.view.flat(kept), self.run, axis=-1)
        index = jnp.take(self.index, self.run, axis=-1)
        columns = lax.broadcasted_iota(jnp.int32, index.shape, index.ndim - 1)
        return self.view.leaf(jnp.where(index == columns, values, 0))


def _kept(density: float, n: int) -> int:
    """`floor(density n)`, and at least one."""
    return max(1, share_of(density, n))


def scale_by_spam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    spike_threshold: Number = 5000.0,
    *,
    reset_interval: int = 500,
    warmup_steps: int = 150,
    clip_start_step: int = 20,
    density: float = 1.0,
    seed: int = 0,
    roles: Roles = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of SPAM, for every leaf.

    See :func:`optlab.spam` for the arguments, and :mod:`optlab.optimizers.spam` for
    the equations.

    Returns:
      The transform; its state holds two numbers a parameter, `2 floor(density n)` a
      row of a hidden matrix, and a key.

    Raises:
      ValueError: an argument is out of range.
    """
    checks.static(
        reset_interval=reset_interval,
        warmup_steps=warmup_steps,
        clip_start_step=clip_start_step,
        density=density,
    )
    check_clipping(spike_threshold, reset_interval, clip_start_step, b1=b1, b2=b2)
    checks.non_negative(eps=eps)
    checks.non_negative_int(warmup_steps=warmup_steps)
    checks.share(density=density)
    checks.seed(seed=seed)
    checks.dtype(mu_dtype=mu_dtype)
    rule = as_rule(roles)

    def sparse_view(path: Any, leaf: Any) -> View | None:
        role = rule(path, leaf) if density < 1 else None
        return View.of(role, leaf.shape) if isinstance(role, Matrix) else None

    def zeros(path, p):
        view = sparse_view(path, p)
        if view is None:
            return jnp.zeros_like(p, state_dtype(p))
        shape = (*view.stack, view.m, _kept(density, view.n))
        return jnp.zeros(shape, state_dtype(p))

    def init_fn(params):
        nu = jax.tree_util.tree_map_with_path(zeros, params)
        return ScaleBySpamState(
            count=jnp.zeros([], jnp.int32),
            key=jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
            mu=zero_state(nu, mu_dtype),
            nu=nu,
        )

    def update_fn(updates, state, params=None, **extra):
        del params, extra
        t = state.count + 1
        position = window_position(t, reset_interval)
        resets = t // reset_interval if reset_interval else jnp.zeros_like(t)
        key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
        key = jax.random.fold_in(key, resets)

        def step(g, m, v):
            m, v = (jnp.where(position == 0, 0.0, x) for x in (m, v))
            g = clip_to_moment(g, v, spike_threshold, position >= clip_start_step)
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * jnp.square(g)
            scale = jnp.sqrt(bias_correction(b2, t, g.dtype))
            scale = scale / bias_correction(b1, t, g.dtype)
            if reset_interval and warmup_steps:
                scale *= restart_warmup(
                    t, position, reset_interval, warmup_steps, g.dtype
                )
            return scale * (m / (safe_sqrt(v) + eps)), m, v

        def step_leaf(i, path, g, m, v):
            view, wide = sparse_view(path, g), g.astype(state_dtype(g))
            if view is None:
                return step(wide, m, v)
            columns = _Columns.draw(jax.random.fold_in(key, i), view, view.flat(m))
            direction, m, v = step(columns.gather(wide), m, v)
            return columns.spread(direction), m, v

        leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
        moments = (treedef.flatten_up_to(x) for x in (state.mu, state.nu))
        results = [
            step_leaf(i, path, g, m, v)
            for i, ((path, g), m, v) in enumerate(zip(leaves, *moments, strict=True))
        ]
        directions, mu, nu = (
            treedef.unflatten([result[i] for result in results]) for i in range(3)
        )
        new_state = ScaleBySpamState(
            t, state.key, cast_like(mu, state.mu), cast_like(nu, state.nu)
        )
        return cast_like(directions, updates), new_state

    return over_leaves(init_fn, update_fn, real="spam")


def spike_shares(
    updates: optax.Updates,
    state: ScaleBySpamState,
    *,
    spike_threshold: Number = 5000.0,
    reset_interval: int = 500,
    clip_start_step: int = 20,
    roles: Roles = None,
) -> optax.Updates:
    """How much of each layer the next update would clip.

    Args:
      updates: the gradients to come.
      state: before the update.
      spike_threshold, reset_interval, clip_start_step, roles: of the transform.

    Returns:
      A tree like `updates` of shares of 1, one a layer: of its entries that have a
      moment, those above the threshold.
    """
    position = window_position(state.count + 1, reset_interval)
    active = (position >= clip_start_step) & (position > 0)
    resets = (state.count + 1) // reset_interval if reset_interval else 0
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    key = jax.random.fold_in(key, resets)
    rule = as_rule(roles)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)

    def share(i, path, g, v):
        role, wide = rule(path, g), g.astype(state_dtype(g))
        view = View.of(role, g.shape) if isinstance(role, Matrix) else None
        if view and v.shape != g.shape:
            columns = _Columns.draw(jax.random.fold_in(key, i), view, view.flat(v))
            wide = columns.gather(wide)
        clipped = clip_to_moment(wide, v, spike_threshold, active) != wide
        if view is None:
            return jnp.mean(clipped)
        spread = clipped if v.shape != g.shape else clipped.transpose(view.order)
        return jnp.mean(spread.reshape(*view.stack, -1), -1)

    second = treedef.flatten_up_to(state.nu)
    return treedef.unflatten(
        [
            share(i, path, g, v)
            for i, ((path, g), v) in enumerate(zip(leaves, second, strict=True))
        ]
    )


def diagnose(seen: Observed) -> dict[str, Any]:
    """The share of each layer's entries that were clipped."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(seen.before.mu)
    updates = treedef.unflatten([seen.gradients[leaf_name(path)] for path, _ in paths])
    names = ("spike_threshold", "reset_interval", "clip_start_step")
    own = {name: seen.arguments[name] for name in names if name in seen.arguments}
    return {"layer_spikes": spike_shares(updates, seen.before, roles=seen.rule, **own)}


@takes(LeafOptions)
def spam(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    spike_threshold: Number = 5000.0,
    reset_interval: int = 500,
    warmup_steps: int = 150,
    clip_start_step: int = 20,
    density: float = 1.0,
    seed: int = 0,
    **options: Unpack[LeafOptions],
) -> optax.GradientTransformationExtraArgs:
    """Adam that clips spikes and starts its moments afresh every so many steps.

    The equations and the deviations from the authors' code stand in
    :mod:`optlab.optimizers.spam`; the two remedies alone are `optlab.clip_spikes` and
    `optlab.reset_every`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((6, 4)), "bias": jnp.zeros(4)}
      >>> tx = optlab.spam(1e-3, density=0.25)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> print(jnp.count_nonzero(updates["w"]))
      6

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the denominator.
      spike_threshold: theta, the square of an entry over its running mean above which
        it is clipped; 0 clips nothing.
      reset_interval: steps between resets, T; 0: never.
      warmup_steps: over which the rate grows back after a reset, N.
      clip_start_step: first step of a window that clips, at least 2.
      density: part of each row of the hidden matrices that has moments and is
        updated, in (0, 1].
      seed: of the choice of those entries; `update` reads the key in the state.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer.

    Raises:
      ValueError: an argument is out of range.
    """
    direction = scale_by_spam(
        *(b1, b2, eps, spike_threshold),
        reset_interval=reset_interval,
        warmup_steps=warmup_steps,
        clip_start_step=clip_start_step,
        density=density,
        seed=seed,
        **pick(StateOptions, options),
    )
    return descend(direction, learning_rate, **pick(DecayOptions, options))
