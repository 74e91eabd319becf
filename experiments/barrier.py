"""The loss along the line between two runs' weights: whether one valley holds both.

    python -m experiments.barrier runs/a runs/b

The barrier is how far the loss rises above the straight line between its values at the
ends: 0 where the two are linearly connected. It is measured for all weights together,
and for one layer at a time with the others as in the first run. Both runs have the same
task and model; the loss is the first one's training loss on its first examples. The
numbers go into `look.jsonl` in the first run's folder, and the report shows them.
Fork one run to several optimizers with `--config.train.fork_run` of the training.
"""

import pathlib
import sys

import jax
from absl import flags

from experiments import command, looked
from experiments.errors import UserError
from experiments.inside.line import Line, barrier
from experiments.inside.run import LookedAt, opened
from experiments.python_files import load_python_config
from experiments.records import finite_or_none

_FLAGS = flags.FlagValues()
_STEP = flags.DEFINE_integer(
    "step",
    None,
    "of both checkpoints, instead of the newest of each",
    flag_values=_FLAGS,
)
_POINTS = flags.DEFINE_integer(
    "points", 21, "on the line, with both ends", lower_bound=3, flag_values=_FLAGS
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 64, "that the loss is taken of", lower_bound=1, flag_values=_FLAGS
)
_LAYERS = flags.DEFINE_bool(
    "layers", True, "measure one layer at a time too", flag_values=_FLAGS
)
_CONFIG = command.define_path(
    "config", "the config file of runs whose parts it registers", _FLAGS
)


def main(positional: list[str], overrides: list[str]) -> int:
    """Measures, and prints the barriers."""
    if len(positional) != 2:
        raise UserError(f"name two runs' folders, given {len(positional)}")
    if _CONFIG.value:
        load_python_config(_CONFIG.value, "get_config", "--config")
    one, other = map(pathlib.Path, positional)
    with opened(one, overrides) as run, opened(other, overrides) as second:
        steps = _step(run), _step(second)
        what = f"barrier to {other.name} step {steps[1]}"
        settings = {
            "other": str(other.resolve()),
            "examples": _EXAMPLES.value,
            "points": _POINTS.value,
            "layers": _LAYERS.value,
        }
        found = _known(one, what, steps[0], settings)
        if found is None:
            found = _measure(run, second, steps)
            record = {"step": steps[0], "what": what, "settings": settings}
            looked.add(one, record | found)
            found = finite_or_none(found)
    ends = found["losses"][0], found["losses"][-1]
    print(f"loss {_text(ends[0])} to {_text(ends[1])}")
    print(f"barrier {_text(found['barrier'])}")
    for name, value in found["layer_barrier"].items():
        print(f"  {name}: {_text(value)}")
    return 0


def _text(value: float | None) -> str:
    """A number; null stands for what was not finite."""
    return "not finite" if value is None else f"{value:.4f}"


def _known(folder, what, step, settings):
    """What was measured already, None if nothing was."""
    for record in looked.read(folder):
        if (record["what"], record["step"]) == (what, step):
            return record if record["settings"] == settings else None
    return None


def _step(run: LookedAt) -> int:
    wanted = _STEP.value
    if wanted is not None and wanted not in run.steps:
        raise UserError(
            f"--step: {run.folder} has no checkpoint of step {wanted}, allowed "
            f"{', '.join(map(str, run.steps))}"
        )
    return run.steps[-1] if wanted is None else wanted


def _measure(run: LookedAt, second: LookedAt, steps: tuple[int, int]) -> dict:
    digests = [x.program.task.digest for x in (run, second)]
    if digests[0] != digests[1]:
        raise UserError(f"{second.folder} was trained on other data than {run.folder}")
    shapes = [
        jax.tree.map(lambda p: p.shape, x.program.abstract.params)
        for x in (run, second)
    ]
    if shapes[0] != shapes[1]:
        raise UserError(f"{second.folder} has another model than {run.folder}")
    a, b = (x.restore(s)[0].params for x, s in zip((run, second), steps, strict=True))
    # Both on the first run's mesh.
    b = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), b, a)
    line = Line(run, a, b, run.probe(_EXAMPLES.value))
    losses = line.losses(_POINTS.value)
    layers, by_layer = (line.layers if _LAYERS.value else []), {}
    for i, name in enumerate(layers):
        print(f"{run.folder}: {name} ({i + 1} of {len(layers)})", file=sys.stderr)
        by_layer[name] = barrier(line.losses(_POINTS.value, name))
    return {"losses": losses, "barrier": barrier(losses), "layer_barrier": by_layer}


if __name__ == "__main__":
    command.run(main, _FLAGS)
