"""How large logits have become: signs, in small models too, of runs that diverge."""

from typing import Any

import jax
import jax.numpy as jnp


def largest_logits(
    model: Any, params: dict, inputs: jax.Array
) -> dict[str, dict[str, jax.Array]]:
    """The largest absolute logits, as diagnostics: by name and by path.

    Args:
      model: has `apply`, and may have `with_attention_logits`.
      params: of it.
      inputs: of it.

    Returns:
      `largest_output_logit`, and `largest_attention_logit` by layer where the model has
      attention.

    References:
      Wortsman et al., `Small-scale proxies for large-scale Transformer training
      instabilities <https://arxiv.org/abs/2309.14322>`_.
    """
    both = getattr(model, "with_attention_logits", None)
    outputs, layers = (
        both(params, inputs) if both else (model.apply(params, inputs), None)
    )
    largest = jnp.max(jnp.abs(outputs.astype(jnp.float32)))
    found = {"largest_output_logit": {"logits": largest}}
    if layers is not None:
        found["largest_attention_logit"] = {"layers": layers}
    return found
