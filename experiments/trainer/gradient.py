"""How a step makes its gradients: `optimizer.gradient` and what goes with it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import optlab


class Gradient(NamedTuple):
    """How gradients are made.

    Attributes:
      kind: "exact", "zeroth" or "forward".
      samples: directions of the last two.
      mu: distance at which "zeroth" takes the loss.
    """

    kind: str = "exact"
    samples: int = 1
    mu: float = 1e-3

    def maker(self, loss_fn: Callable) -> Callable[..., tuple[Any, Any]]:
        """`f(params, direction_key, *args) -> (loss, aux), gradients`."""
        options = {"samples": self.samples, "has_aux": True}
        if self.kind == "zeroth":
            return optlab.zo_value_and_grad(loss_fn, mu=self.mu, **options)
        if self.kind == "forward":
            return optlab.forward_value_and_grad(loss_fn, **options)
        exact = jax.value_and_grad(loss_fn, has_aux=True)
        return lambda params, _, *args: exact(params, *args)


EXACT = Gradient()
