"""One training step: gradients, clipping, rates, update, and what is measured."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optlab
from experiments.trainer.optimizer import set_rates
from experiments.trainer.state import TrainState

# The extra arguments of `update` that a step knows how to supply.
SUPPLIES = ("hessian_diag", "other_grads")


def batches_per_step(needs: tuple[str, ...]) -> int:
    """How many batches a step reads: two where it compares independent gradients."""
    return 2 if "other_grads" in needs else 1


def _make_gradients(loss_fn: Callable, needs: tuple[str, ...], interval: int):
    """How one microbatch gives the gradient and all that the optimizer needs besides.

    Args:
      loss_fn: the task's.
      needs: some of `SUPPLIES`.
      interval: updates that one Hessian diagonal serves.

    Returns:
      `f(params, batches, key, count) -> (loss, aux), gradients, extra arguments`, with
      `count` the updates that the optimizer has made.
    """
    plain = jax.value_and_grad(loss_fn, has_aux=True)
    curved = optlab.value_grad_and_periodic_hessian_diag(
        loss_fn, interval, has_aux=True
    )

    def gradients(params, batches, key, count):
        extra = {}
        if "hessian_diag" in needs:
            probe_key = jax.random.fold_in(key, 1)
            value, grads, extra["hessian_diag"] = curved(
                params, probe_key, count, batches[0], key
            )
        else:
            value, grads = plain(params, batches[0], key)
        if "other_grads" in needs:
            other_key = jax.random.fold_in(key, 2)
            _, extra["other_grads"] = plain(params, batches[1], other_key)
        return value, grads, extra

    return gradients


def make_train_step(
    task,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    *,
    needs: tuple[str, ...] = (),
    hessian_interval: int = 1,
    accumulate: int = 1,
    clip_norm: float = 0.0,
) -> Callable[[TrainState, Any, Mapping[str, jax.Array]], tuple[TrainState, dict]]:
    """Builds the pure function that the loop compiles.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they
    are; it is counted in `bad_steps`.

    Args:
      task: what is trained.
      tx: from `make_optimizer`.
      schedule: share of the peak rate at each step.
      needs: the registry entry's extra arguments.
      hessian_interval: updates that one Hessian diagonal serves, as the optimizer has
        it.
      accumulate: microbatches in a step, worked through one after another.
      clip_norm: largest global norm of the gradient; 0 leaves it alone.

    Returns:
      `step(state, batches, peaks) -> (state, metrics)`, where `batches` is a tuple of
      `batches_per_step(needs)`, and `peaks` holds the rates.

    Raises:
      ValueError: if nothing here supplies what the optimizer needs.
    """
    for name in needs:
        if name not in SUPPLIES:
            raise ValueError(f"no training step supplies {name}")
    gradients_of = _make_gradients(task.loss, needs, hessian_interval)

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

    def step(state, batches, peaks):
        key = jax.random.fold_in(state.key, state.step)
        # The optimizer's own count: skipped steps are none of its updates.
        (loss, aux), grads, extra = gradients(
            state.params, batches, key, state.opt_state.count
        )
        grad_norm = optax.tree.norm(grads)
        if clip_norm:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-30))
            scaled = functools.partial(jax.tree.map, lambda g: g * scale)
            grads = scaled(grads)
            if "other_grads" in extra:  # by the same factor, to be compared
                extra["other_grads"] = scaled(extra["other_grads"])
        finite = jnp.stack([_finite(*g) for g in _by_leaf(grads, *extra.values())])
        good = finite.all() & jnp.isfinite(loss)
        opt_state = set_rates(state.opt_state, peaks, schedule(state.step))

        def update():
            updates, new = tx.update(grads, opt_state, state.params, **extra)
            size = sum(leaf.size for leaf in jax.tree.leaves(updates))
            update_rms = optax.tree.norm(updates) / jnp.sqrt(size)
            return optax.apply_updates(state.params, updates), new, update_rms

        def skip():
            return state.params, opt_state, jnp.zeros_like(grad_norm)

        # Not a select: an eigendecomposition of NaN may take for ever.
        params, opt_state, update_rms = jax.lax.cond(good, update, skip)
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            key=state.key,
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
        )
        metrics = {
            "loss": loss,
            **aux,
            "grad_norm": grad_norm,
            "update_rms": update_rms,
            "learning_rate": optlab.current_learning_rate(opt_state),
            "bad_steps": state.bad_steps,
            # The first leaf with a non-finite gradient, -1 where there is none.
            "bad_leaf": jnp.where(finite.all(), -1, jnp.argmin(finite)),
        }
        return state, metrics

    return step


def _by_leaf(*trees) -> Iterable[tuple[jax.Array, ...]]:
    """What each leaf has in every one of the trees."""
    return zip(*map(jax.tree.leaves, trees), strict=True)


def _finite(*arrays: jax.Array) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()
