"""One training step: gradients, clipping, rates, update, and what is measured."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optlab
from experiments.trainer.faults import NONE, Faults, scaled
from experiments.trainer.gradient import EXACT, Gradient
from experiments.trainer.optimizer import set_rates
from experiments.trainer.state import TrainState
from optlab.compose import to_state_dtype
from optlab.inside.diagnostics import layer_diagnostics

# The extra arguments of `update` that a step knows how to supply.
SUPPLIES = ("hessian_diag", "other_grads", "value")


def batches_per_step(needs: tuple[str, ...]) -> int:
    """How many batches a step reads: two where it compares independent gradients."""
    return 2 if "other_grads" in needs else 1


def _make_gradients(
    loss_fn: Callable,
    gradient: Gradient,
    needs: tuple[str, ...],
    interval: int,
    axis: str | None,
):
    """How one microbatch gives the gradient and all that the optimizer needs besides.

    Args:
      loss_fn: the task's.
      gradient: how gradients are made.
      needs: some of `SUPPLIES`.
      interval: updates that one Hessian diagonal serves.
      axis: of `pmap`, whose devices each have their rows.

    Returns:
      `f(params, batches, key, count) -> (loss, aux), gradients, extra arguments`, with
      `count` the updates that the optimizer has made.
    """
    plain = gradient.maker(loss_fn)
    curved = optlab.value_grad_and_periodic_hessian_diag(
        loss_fn, interval, has_aux=True
    )

    def gradients(params, batches, key, count):
        extra = {}
        # The probe is the same everywhere, since its products are averaged.
        own = key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))
        probe_key = jax.random.fold_in(key, 1)
        if "hessian_diag" in needs:
            value, grads, extra["hessian_diag"] = curved(
                params, probe_key, count, batches[0], own
            )
        else:
            value, grads = plain(params, probe_key, batches[0], own)
        if "other_grads" in needs:
            other_key = jax.random.fold_in(own, 2)
            other_probe = jax.random.fold_in(key, 3)
            _, extra["other_grads"] = plain(params, other_probe, batches[1], other_key)
        # Those of bfloat16 weights are added up, and squared, in float32.
        return value, *to_state_dtype((grads, extra))

    return gradients


class Prepared(NamedTuple):
    """What a step hands to the optimizer.

    Attributes:
      loss: of the batch.
      aux: the task's own metrics.
      grads: clipped, averaged over microbatches and devices.
      extra: the optimizer's extra arguments.
      grad_norm: before clipping.
      grad_norm_l1: the sum of its absolute values, before clipping.
      finite: `(leaves,)`, whether all that belongs to a leaf is finite, and its sums of
        squares too: optimizers square it.
    """

    loss: jax.Array
    aux: dict[str, jax.Array]
    grads: optax.Updates
    extra: dict[str, optax.Updates]
    grad_norm: jax.Array
    grad_norm_l1: jax.Array
    finite: jax.Array


def make_prepare(
    task,
    *,
    gradient: Gradient = EXACT,
    needs: tuple[str, ...] = (),
    hessian_interval: int = 1,
    accumulate: int = 1,
    clip_norm: float = 0.0,
    faults: Faults = NONE,
    axis: str | None = None,
) -> Callable[[TrainState, Any], Prepared]:
    """Builds the first half of a step: gradients and all that goes with them.

    Args:
      task: what is trained.
      gradient: how gradients are made.
      needs: the extra arguments of the registry's entry and of the wrappers.
      hessian_interval: updates that one Hessian diagonal serves, as the optimizer has
        it.
      accumulate: microbatches in a step, worked through one after another.
      clip_norm: largest global norm of the gradient; 0 leaves it alone.
      faults: what is done to the gradients before they are clipped.
      axis: the name of the devices under `pmap`, None under `jit`.

    Returns:
      `prepare(state, batches) -> Prepared`, where `batches` is a tuple of
      `batches_per_step(needs)`.

    Raises:
      ValueError: if nothing here supplies what the optimizer needs.
    """
    for name in needs:
        if name not in SUPPLIES:
            raise ValueError(f"no training step supplies {name}")
    if "hessian_diag" in needs and gradient.kind != "exact":
        raise ValueError(
            f"optimizer.gradient: given {gradient.kind!r}, allowed 'exact' with an "
            "optimizer that needs hessian_diag"
        )
    gradients_of = _make_gradients(
        *(task.loss, gradient, needs, hessian_interval, axis)
    )

    def gradients(params, batches, key, count):
        if accumulate == 1:
            return gradients_of(params, batches, key, count)
        # Every so many rows make a microbatch, so that each device keeps its own.
        micro = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batches
        )

        def add(total, part):
            new = gradients_of(params, *part, count)
            return jax.tree.map(jnp.add, total, new), None

        parts = (micro, jax.random.split(key, accumulate))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients_of, params, *first, count)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / accumulate, total)

    def prepare(state, batches):
        key = jax.random.fold_in(state.key, state.step)
        # The optimizer's own count: skipped steps are none of its updates.
        (loss, aux), grads, extra = gradients(
            state.params, batches, key, state.opt_state.count
        )
        if axis is not None:
            (loss, aux), grads, extra = jax.lax.pmean(((loss, aux), grads, extra), axis)
        grads = faults.of_step(grads, jax.random.fold_in(key, 4), state.step)
        grad_norm, grad_norm_l1 = _norm(grads), optax.tree.norm(grads, ord=1)
        if clip_norm:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-30))
            grads = scaled(grads, scale)
            if "other_grads" in extra:  # by the same factor, to be compared
                extra["other_grads"] = scaled(extra["other_grads"], scale)
        finite = jnp.stack([_usable(*g) for g in _by_leaf(grads, *extra.values())])
        if "value" in needs:  # optax's name of the loss
            extra["value"] = loss
        return Prepared(loss, aux, grads, extra, grad_norm, grad_norm_l1, finite)

    return prepare


def make_train_step(
    task,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    *,
    ema_decay: float = 0.0,
    **options: Any,
) -> Callable[[TrainState, Any, Mapping[str, jax.Array]], tuple[TrainState, dict]]:
    """Builds the pure function that the loop compiles.

    A step whose loss, gradient or update is not finite leaves parameters and optimizer
    as they are; it is counted in `bad_steps`.

    Args:
      task: what is trained.
      tx: from `make_optimizer`.
      schedule: share of the peak rate at each step.
      ema_decay: of the moving average of the parameters, where the state has one.
      **options: of `make_prepare`.

    Returns:
      `step(state, batches, peaks) -> (state, metrics)`, where `peaks` holds the rates.
    """
    prepare = make_prepare(task, **options)

    def step(state, batches, peaks):
        prepared = prepare(state, batches)
        loss, aux, grads, extra, grad_norm, grad_norm_l1, finite = prepared
        sound = finite.all() & jnp.isfinite(loss)
        opt_state = set_rates(state.opt_state, peaks, schedule(state.step))

        def update():
            updates, new = tx.update(grads, opt_state, state.params, **extra)
            updates = optax.tree.cast_like(updates, grads)
            return updates, new, optax.tree.norm(updates)

        def skip():  # what stands for the updates is not used
            return grads, opt_state, jnp.zeros_like(grad_norm)

        # Not a select: an eigendecomposition of NaN may take for ever.
        updates, new, norm = jax.lax.cond(sound, update, skip)
        leaves = jax.tree.leaves(updates)
        # The norm is recorded anyway. Leaves are looked at only where it is not finite:
        # squares may be too large for the dtype where the new parameters are not.
        made = jax.lax.cond(
            jnp.isfinite(norm),
            lambda *_: jnp.ones(len(leaves), bool),
            lambda *x: jnp.stack([jnp.isfinite(p + u).all() for p, u in _by_leaf(*x)]),
            *(state.params, updates),
        )
        good = sound & made.all()
        # A select into the old memory: as much of it as without undoing.
        params, new_state = jax.tree.map(
            lambda x, old: jnp.where(good, x, old),
            (optax.apply_updates(state.params, updates), new),
            (state.params, opt_state),
        )
        ema = state.ema
        if ema:
            averaged = optax.incremental_update(
                optax.tree.cast_like(params, ema), ema, 1 - ema_decay
            )
            ema = jax.tree.map(lambda x, old: jnp.where(good, x, old), averaged, ema)
        size = sum(leaf.size for leaf in leaves)
        update_rms = jnp.where(good, norm / jnp.sqrt(size), 0)
        opt_state = new_state
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            key=state.key,
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
            ema=ema,
        )
        metrics = {
            "loss": loss,
            **aux,
            # Both, since `optlab.refined_schedule` reads either from a finished run.
            "grad_norm": grad_norm,
            "grad_norm_l1": grad_norm_l1,
            "update_rms": update_rms,
            "learning_rate": optlab.current_learning_rate(opt_state),
            # Of an optimizer inside `optlab.skip_spikes`.
            **optlab.skipped_steps(opt_state),
            "bad_steps": state.bad_steps,
            # The first leaf with a non-finite gradient, -1 where there is none.
            "bad_leaf": jnp.where(finite.all(), -1, jnp.argmin(finite)),
            # The same of the updates that the optimizer makes of a finite gradient.
            "bad_update": jnp.where(made.all(), -1, jnp.argmin(made)),
        }
        return state, metrics

    return step


def make_diagnose(
    task,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    *,
    arguments: Mapping[str, Any],
    **options: Any,
) -> Callable[[TrainState, Any, Mapping[str, jax.Array]], dict]:
    """Builds the function that looks at every layer of a step before it is made.

    Args:
      task: what is trained.
      tx: as of the training step, without weight decay.
      schedule: share of the peak rate at each step.
      arguments: those that the optimizer was made with.
      **options: of `make_prepare`.

    Returns:
      `diagnose(state, batches, peaks)`, the values of
      `optlab.diagnostics.layer_diagnostics`, and of the task's `largest_logits` if it
      has that; of a gradient that is not finite, those of zero.
    """
    prepare, axis = make_prepare(task, **options), options.get("axis")

    def diagnose(state, batches, peaks):
        prepared = prepare(state, batches)
        good = prepared.finite.all() & jnp.isfinite(prepared.loss)
        grads, extra = jax.tree.map(
            lambda x: jnp.where(good, x, 0), (prepared.grads, prepared.extra)
        )
        before = set_rates(state.opt_state, peaks, schedule(state.step))
        updates, after = tx.update(grads, before, state.params, **extra)
        values = layer_diagnostics(
            *(grads, updates, state.params, before, after),
            roles=task.roles,
            arguments=arguments,
            extra=extra,
        )
        return values | logits(state.params, batches[0])

    def logits(params, batch):
        if not hasattr(task, "largest_logits"):
            return {}
        found = task.largest_logits(params, batch)
        return found if axis is None else jax.lax.pmax(found, axis)

    return diagnose


def _by_leaf(*trees) -> Iterable[tuple[jax.Array, ...]]:
    """What each leaf has in every one of the trees."""
    return zip(*map(jax.tree.leaves, trees), strict=True)


def _usable(*arrays: jax.Array) -> jax.Array:
    return jnp.stack([jnp.isfinite(jnp.sum(x * x)) for x in arrays]).all()


def _norm(tree: optax.Updates) -> jax.Array:
    """The global norm, also where a square is too large for the dtype."""
    norm = optax.tree.norm(tree)

    def scaled(tree):
        # A power of two, which rounds nothing; the squares of the largest stay finite.
        small = 2.0 ** -(jnp.finfo(norm.dtype).maxexp * 3 // 4)
        return optax.tree.norm(jax.tree.map(lambda g: g * small, tree)) / small

    return jax.lax.cond(jnp.isfinite(norm), lambda _: norm, scaled, tree)
