"""What can be measured at a checkpoint, by name: numbers from a run and its state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import optlab
from experiments.errors import UserError
from experiments.inside.run import LookedAt
from experiments.trainer.state import TrainState, by_layer, tree_bytes
from optlab.inside import examples, sharpness, spectrum
from optlab.matrices.norms import tree_layers
from optlab.roles import as_rule, leaf_name


class Settings(NamedTuple):
    """How much is measured.

    Attributes:
      examples: in the probe batch.
      order: steps of Lanczos for the spectrum, fewer where the budget says so.
      draws: starts of Lanczos.
      budget_bytes: of memory for vectors beside the model's own.
    """

    examples: int
    order: int
    draws: int
    budget_bytes: float


class Measurer:
    """Measures the checkpoints of one run; each function is compiled once."""

    def __init__(self, run: LookedAt, settings: Settings):
        self._run, self.settings = run, settings
        self._batch = None
        self._last_sums: tuple[int, examples.GradientSums] | None = None
        self._compiled: dict[str, Callable] = {}

    def measure(self, what: str, state: TrainState, position: Any) -> dict[str, Any]:
        """The numbers of one measurement at one checkpoint, ready for JSON.

        Raises:
          UserError: it does not fit the budget, or the probe is too small.
        """
        if self._batch is None:
            self._batch = self._run.probe(self.settings.examples)
        try:
            found = getattr(self, f"_{what}")(state, position)
        except ValueError as error:
            raise UserError(f"{self._run.folder}: {what}: {error}") from error
        return _plain(found)

    def _jit(self, name: str, function: Callable) -> Callable:
        return self._compiled.setdefault(name, jax.jit(function))

    def _product(self, params: Any, batch: Any) -> Callable:
        return lambda v: optlab.hvp(self._run.loss, params, v, batch)

    def _sharpness(self, state: TrainState, position: Any) -> dict[str, Any]:
        del position
        spectrum.largest_order(state.params, self.settings.budget_bytes)

        def top(params, batch, preconditioner):
            product = self._product(params, batch)
            product = sharpness.preconditioned(product, preconditioner)
            return spectrum.top_eigenvalue(
                product, params, jax.random.key(0), steps=self.settings.order
            )

        run = self._jit("sharpness", top)
        rate = float(optlab.current_learning_rate(state.opt_state)["learning_rate"])
        ones = jax.tree.map(jnp.ones_like, state.params)
        raw = run(state.params, self._batch, ones)
        found: dict[str, Any] = {"sharpness": raw, "learning_rate": rate}
        edge = sharpness.edge_of_stability(
            state.opt_state, state.params, self._run.config.optimizer.kwargs, rate
        )
        if edge is not None:
            own = run(state.params, self._batch, edge.preconditioner)
            found |= {
                "preconditioned_sharpness": own,
                "bound": edge.bound,
                "of_bound": own / edge.bound,
            }
        return found

    def _spectrum(self, state: TrainState, position: Any) -> dict[str, Any]:
        del position
        most = spectrum.largest_order(state.params, self.settings.budget_bytes)
        order = min(self.settings.order, most)

        def ritz(params, batch, key):
            product = self._product(params, batch)
            found = spectrum.spectrum(
                product, params, key, order=order, draws=self.settings.draws
            )
            return found, spectrum.density(found, 400)

        found, (grid, height) = self._jit("spectrum", ritz)(
            state.params, self._batch, jax.random.key(0)
        )
        return {
            "order": order,
            "smallest": jnp.min(found.values),
            "largest": jnp.max(found.values),
            "values": found.values,
            "weights": found.weights,
            "grid": grid,
            "density": height,
        }

    def _sums(self, state: TrainState) -> examples.GradientSums:
        """Those of a checkpoint, which two measurements share."""
        step = int(state.step)
        if self._last_sums is not None and self._last_sums[0] == step:
            return self._last_sums[1]
        each = tree_bytes(state.params)
        chunk = int(min(self.settings.budget_bytes / 2 // each, 16))
        if chunk < 1:
            raise ValueError(f"--budget_gb must hold two gradients, {2 * each:,} bytes")
        roles = self._run.program.task.roles

        def over_examples(params, batch):
            return examples.gradient_sums(
                self._run.example_loss, params, batch, chunk=chunk, roles=roles
            )[1:]

        found = self._jit("sums", over_examples)(state.params, self._batch)
        sums = examples.GradientSums(self.settings.examples, *found)
        self._last_sums = step, sums
        return sums

    def _coherence(self, state: TrainState, position: Any) -> dict[str, Any]:
        del position
        sums = self._sums(state)
        return {
            "examples": sums.count,
            "m_alpha": examples.coherence(sums.whole())[""],
            "layer_m_alpha": _layers(examples.coherence(sums)),
        }

    def _noise(self, state: TrainState, position: Any) -> dict[str, Any]:
        del position
        sums = self._sums(state)
        return {
            "noise_scale": examples.noise_scale(sums.whole())[""],
            "layer_noise_scale": _layers(examples.noise_scale(sums)),
        }

    def _opposing(self, state: TrainState, position: Any) -> dict[str, Any]:
        count = min(5, self.settings.examples // 2)
        after = self._run.next_step(state, position)

        def compare(before, after, batch):
            loss = self._run.example_loss
            return examples.opposing(loss, before, after, batch, count=count)

        groups, change = self._jit("opposing", compare)(
            state.params, after, self._batch
        )

        def listed(rows):
            return [
                {
                    "example": int(i),
                    "change": float(change[i]),
                    "shown": self._run.shown(self._batch, int(i)),
                    **self._run.pixels(self._batch, int(i)),
                }
                for i in rows
            ]

        return {
            "cosine": groups.cosine,
            "mean_change": jnp.mean(change),
            "rose": listed(groups.rose),
            "fell": listed(groups.fell),
        }

    def _distance(self, state: TrainState, position: Any) -> dict[str, Any]:
        del position
        if "start" not in self._compiled:
            start = self._run.program.first_state().params
            self._compiled["start"] = lambda: start
        roles = as_rule(self._run.program.task.roles)

        def distances(params, start):
            moved = jax.tree.map(jnp.subtract, params, start)
            return _norms(moved, roles), _norms(start, roles)

        moved, size = self._jit("distance", distances)(
            state.params, self._compiled["start"]()
        )
        total = {
            name: jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in part.values()))
            for name, part in (("moved", moved), ("size", size))
        }
        relative = {n: x / jnp.maximum(size[n], 1e-30) for n, x in moved.items()}
        return {
            "distance": total["moved"],
            "relative_distance": total["moved"] / total["size"],
            "layer_distance": _layers(moved),
            "layer_relative_distance": _layers(
                {n: jnp.where(size[n] > 0, x, jnp.nan) for n, x in relative.items()}
            ),
        }


# Name -> the settings that its numbers depend on.
MEASURES: dict[str, tuple[str, ...]] = {
    "spectrum": ("examples", "order", "draws"),
    "sharpness": ("examples", "order"),
    "coherence": ("examples",),
    "opposing": ("examples",),
    "noise": ("examples",),
    "distance": (),
}


def _norms(tree: Any, rule: Any) -> dict[str, jax.Array]:
    """The Frobenius norm of every layer, by the path of the parameter."""
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    parts = zip(names, jax.tree.leaves(tree), tree_layers(tree, rule, 1.0), strict=True)
    return {
        name: jnp.sqrt(jnp.sum(jnp.square(x), layer.axes)) for name, x, layer in parts
    }


def _layers(values: dict[str, jax.Array]) -> dict[str, Any]:
    """Numbers by layer: those of a stacked leaf by their place in it."""
    return by_layer({"": values})[""]


def _plain(value: Any) -> Any:
    """Python's own numbers, lists and dictionaries of what jax gave."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value
