"""Looks inside runs: curvature, coherence, noise and distances at their checkpoints.

    python -m experiments.look runs/a runs/b --what=sharpness,coherence

Each checkpoint of each run, or of each run below a folder, is measured with the run's
own task, data and model, on a probe batch of its first training examples. What is found
goes into `look.jsonl` in the run's folder, and `python -m experiments.report` shows it.
What is there already is not measured again, so a look that was stopped goes on. Keep
more checkpoints than two with `--config.train.keep_checkpoints=0` of the training.
"""

import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

import jax
from absl import flags

from experiments import command, compiled, looked
from experiments.errors import UserError, nearest
from experiments.inside.measures import MEASURES, Measurer, Settings
from experiments.inside.run import LookedAt, opened
from experiments.python_files import load_python_config
from experiments.reporting.runs import find

_FLAGS = flags.FlagValues()
_WHAT = flags.DEFINE_list("what", list(MEASURES), "what to measure", flag_values=_FLAGS)
_STEPS = flags.DEFINE_list(
    "steps", [], "of the checkpoints to look at; all by default", flag_values=_FLAGS
)
_BUDGET = flags.DEFINE_float(
    "budget_gb",
    4.0,
    "memory for vectors of Lanczos and for gradients of single examples, in 1e9 bytes",
    lower_bound=0.0,
    flag_values=_FLAGS,
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 64, "in the probe batch", lower_bound=2, flag_values=_FLAGS
)
_ORDER = flags.DEFINE_integer(
    "order",
    32,
    "steps of Lanczos, a Hessian product each; fewer where the budget says so",
    lower_bound=1,
    flag_values=_FLAGS,
)
_DRAWS = flags.DEFINE_integer(
    "draws", 1, "random starts for the spectrum", lower_bound=1, flag_values=_FLAGS
)
_CONFIG = command.define_path(
    "config", "the config file of runs whose parts it registers", _FLAGS
)


def main(positional: list[str], overrides: list[str]) -> int:
    """Measures what is not there yet."""
    if not positional:
        raise UserError("name at least one run's folder")
    for name in _WHAT.value:
        if name not in MEASURES:
            raise UserError(
                f"--what: given {name!r}, allowed {', '.join(MEASURES)}"
                f"{nearest(name, MEASURES)}"
            )
    steps = _steps(_STEPS.value)
    if _CONFIG.value:
        load_python_config(_CONFIG.value, "get_config", "--config")
    settings = Settings(
        _EXAMPLES.value, _ORDER.value, _DRAWS.value, _BUDGET.value * 1e9
    )
    found: dict[pathlib.Path, bool] = {}
    for folder in map(pathlib.Path, positional):
        for path, own in _runs(folder).items():
            found[path] = own or found.get(path, False)

    def check(run: LookedAt) -> None:
        _chosen(run, steps)

    def measure(run: LookedAt) -> None:
        _look(run, _chosen(run, steps), settings)

    # A mistake in the last one is said before the first is measured.
    found = _each(found, overrides, check)
    with contextlib.ExitStack() as stack:
        if len(found) > 1 and jax.config.jax_compilation_cache_dir is None:
            # Runs of one model have programs in common.
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(compiled.kept_in(cache))
        _each(found, overrides, measure)
    return 0


def _runs(folder: pathlib.Path) -> dict[pathlib.Path, bool]:
    """The folder itself, or the runs below one that is no run; whether it was named."""
    if (folder / "config.json").exists() or not folder.is_dir():
        return {folder: True}
    said: list[str] = []
    runs = list(find([folder], said))
    if not runs:
        return {folder: True}
    for line in said:
        _say(line)
    return dict.fromkeys(runs, False)


def _each(
    found: Mapping[pathlib.Path, bool],
    overrides: list[str],
    do: Callable[[LookedAt], None],
) -> dict[pathlib.Path, bool]:
    """Does something with each run, and returns those with which it could be done.

    Args:
      found: run -> whether it was named; if not, it may be left out.
      overrides: of their configs.
      do: what is done.

    Raises:
      UserError: with a run that was named, or with each of them.
    """
    done = {}
    for folder, named in found.items():
        try:
            with opened(folder, overrides) as run:
                do(run)
        except UserError as error:
            if named:
                raise
            _say(f"left out: {error}")
        else:
            done[folder] = named
    if not done:
        raise UserError("no run is left to look at")
    return done


def _steps(words: list[str]) -> list[int]:
    try:
        return sorted({int(word) for word in words})
    except ValueError:
        raise UserError(
            f"--steps: given {','.join(words)}, allowed numbers with commas between"
        ) from None


def _chosen(run: LookedAt, steps: list[int]) -> list[int]:
    for step in steps:
        if step not in run.steps:
            raise UserError(
                f"--steps: {run.folder} has no checkpoint of step {step}, allowed "
                f"{', '.join(map(str, run.steps))}"
            )
    return steps or run.steps


def _look(run: LookedAt, steps: list[int], settings: Settings) -> None:
    """Measures one run, a line of progress for each number."""
    known = {(x["step"], x["what"]): x["settings"] for x in looked.read(run.folder)}
    left = [
        (step, what)
        for step in steps
        for what in _WHAT.value
        if known.get((step, what)) != _settings(what, settings)
    ]
    there = len(steps) * len(_WHAT.value) - len(left)
    if there:
        _say(f"{run.folder}: {there} measured already")
    measurer = Measurer(run, settings)
    started, at = time.perf_counter(), None
    state = position = None
    for done, (step, what) in enumerate(left):
        _say(f"{run.folder}: step {step}, {what}{_time_left(started, done, len(left))}")
        if at != step:
            state, position = run.restore(step)
            at = step
        begun = time.perf_counter()
        found = measurer.measure(what, state, position)
        record = {"step": step, "what": what, "settings": _settings(what, settings)}
        seconds = {"seconds": time.perf_counter() - begun}
        looked.add(run.folder, record | found | seconds)
    _say(f"{run.folder}: {len(left)} measured, {run.folder / looked.NAME}")


def _settings(what: str, settings: Settings) -> dict[str, int]:
    return {name: getattr(settings, name) for name in MEASURES[what]}


def _time_left(started: float, done: int, count: int) -> str:
    text = f" ({done + 1} of {count}"
    if done:
        seconds = round((time.perf_counter() - started) / done * (count - done))
        text += f", {seconds // 60}:{seconds % 60:02d} left"
    return text + ")"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    command.run(main, _FLAGS)
