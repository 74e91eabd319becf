"""One training step: gradients, clipping, rates, update, and what is measured."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optlab
from experiments.trainer.optimizer import set_rates
from experiments.trainer.state import TrainState


def _loss_and_gradients(loss_fn, params, batch, key):
    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key)
    return (loss, aux), grads, {}


# What the optimizer needs besides the gradient -> how one microbatch gives it all:
# (loss_fn, params, batch, key) -> (loss, aux), gradients, extra arguments of `update`.
GRADIENTS: dict[tuple[str, ...], Callable] = {(): _loss_and_gradients}


def make_train_step(
    task,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    *,
    needs: tuple[str, ...] = (),
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
      accumulate: microbatches in a step, worked through one after another.
      clip_norm: largest global norm of the gradient; 0 leaves it alone.

    Returns:
      `step(state, batch, peaks) -> (state, metrics)`, where `peaks` holds the rates.

    Raises:
      ValueError: if nothing here supplies what the optimizer needs.
    """
    if needs not in GRADIENTS:
        raise ValueError(f"no training step supplies {', '.join(needs)}")
    gradients_of = functools.partial(GRADIENTS[needs], task.loss)

    def gradients(params, batch, key):
        if accumulate == 1:
            return gradients_of(params, batch, key)
        micro = jax.tree.map(
            lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]),
            batch,
        )

        def add(total, part):
            new = gradients_of(params, *part)
            return jax.tree.map(jnp.add, total, new), None

        parts = (micro, jax.random.split(key, accumulate))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients_of, params, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state, batch, peaks):
        key = jax.random.fold_in(state.key, state.step)
        (loss, aux), grads, extra = gradients(state.params, batch, key)
        grad_norm = optax.tree.norm(grads)
        if clip_norm:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-30))
            grads = jax.tree.map(lambda g: g * scale, grads)
        finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)])
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
