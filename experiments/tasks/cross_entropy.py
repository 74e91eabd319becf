"""The loss that every task here has."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy in nats, and the normalizers it came from.

    Args:
      logits: `(..., classes)`, any float dtype; the arithmetic is float32.
      targets: `(...)` integers.

    Returns:
      A scalar, and `logsumexp(logits)` of shape `(...)`.
    """
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    places = targets.astype(jnp.int32)[..., None]
    chosen = jnp.take_along_axis(logits, places, axis=-1)[..., 0]
    return jnp.mean(normalizer - chosen), normalizer


def with_z_loss(
    loss: jax.Array, normalizer: jax.Array, weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`loss + weight * mean(normalizer^2)`, and that part as a metric if there is one.

    It keeps logits from drifting, which the cross-entropy itself does not see.
    """
    if not weight:
        return loss, {}
    z_loss = weight * jnp.mean(jnp.square(normalizer))
    return loss + z_loss, {"z_loss": z_loss}
