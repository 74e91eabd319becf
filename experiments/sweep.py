"""Trains the points of a sweep, a limited number at once; a killed one goes on.

    python -m experiments.sweep --sweep=configs/sweeps/optimizers.py --launcher=local \\
        --workers=2

Every point has a folder in the workdir, named by a hash of its overrides. Points that
completed or diverged are not run again, if their config and data are still what the
sweep asks for; a point that fails is tried twice more. `--config.*` changes all points.
Optuna keeps the trials: `optuna-dashboard sqlite:///runs/optimizers/optuna.db` shows
them while they run. Launchers with one storage share the points, in one workdir or
each in another one; what a launcher leaves that was killed, another one takes over.

Exit status: 0 all points completed, diverged or pruned, 1 some failed, 2 bad input or a
storage that does not answer, 4 a run is at work in a folder to overwrite, 129, 130 and
143 stopped by a signal.
"""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import command, field_help, parts, points
from experiments.errors import UserError, nearest
from experiments.launchers import LAUNCHERS
from experiments.launchers.running import Standings, Sweep, task_of
from experiments.launchers.storage import Storage, of_file
from experiments.launchers.trials import Trials
from experiments.points import Point

_FLAGS = flags.FlagValues()
_SWEEP = command.define_path("sweep", "sweep file, such as configs/sweeps/*.py", _FLAGS)
_WORKDIR = command.define_path(
    "workdir",
    "the sweep's folder, made if missing; runs/NAME for a sweep file NAME.py",
    _FLAGS,
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "inline",
    list(LAUNCHERS),
    "where points run: inline (here, one by one), local (processes of this machine) or "
    "slurm",
    flag_values=_FLAGS,
)
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "points at once", lower_bound=1, flag_values=_FLAGS
)
_STORAGE = flags.DEFINE_string(
    "storage",
    None,
    "Optuna's storage, instead of sqlite in the workdir",
    flag_values=_FLAGS,
)
_LAUNCHER_OPTIONS = flags.DEFINE_list(
    "launcher_options", [], "name=value,... as below", flag_values=_FLAGS
)
_SLURM = flags.DEFINE_list(
    "slurm",
    [],
    "--launcher_options of --launcher=slurm, by their older name",
    flag_values=_FLAGS,
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "list the points and what they cost", flag_values=_FLAGS
)
_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed",
    False,
    "try points again that have failed for good",
    flag_values=_FLAGS,
)

_OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "train points again that were trained with another config or other data",
    flag_values=_FLAGS,
)
_HANG_SECONDS = flags.DEFINE_float(
    "hang_seconds",
    None,
    "end a worker that writes nothing for so long, and try its point again; 0: never; "
    "by default 30 minutes before its first record and then 20 times its longest "
    "pause, at least 10 minutes; not with --launcher=inline",
    lower_bound=0.0,
    flag_values=_FLAGS,
)

# A point is tried this often before it counts as failed.
ATTEMPTS = 3


def cost(wanted: Sequence[Point], folder: pathlib.Path | None, workers: int) -> str:
    """What the points that are left cost, in one line.

    The time comes from the points that have finished in the folder, if there are any.
    """
    sizes: dict[str, tuple[int, int]] = {}
    tokens = flops = steps = 0
    seconds = []
    left = 0
    standings = Standings(folder) if folder else None
    for point in wanted:
        result = standings.result(point) if standings else None
        if result:
            if result["total_seconds"]:
                seconds.append(result["total_seconds"] / max(result["steps"] or 1, 1))
            continue
        config = point.config
        shape = {"task": config.task, "model": config.model}
        key = str(shape) + str(config.train.batch_size)
        if key not in sizes:
            task = task_of(point)
            tree = jax.eval_shape(task.init, jax.random.key(0))
            count = sum(leaf.size for leaf in jax.tree.leaves(tree))
            sizes[key] = task.tokens_per_batch, count
        batch, parameters = sizes[key]
        left += 1
        steps += config.train.steps
        tokens += config.train.steps * batch
        flops += 6 * parameters * config.train.steps * batch
    text = (
        f"{left} of {len(wanted)} points left: {steps:,} steps, {tokens:,} tokens, "
        f"about {flops:.1e} FLOPs (6 x parameters x tokens)"
    )
    if seconds and left:
        hours = float(np.mean(seconds)) * steps / workers / 3600
        text += f", about {hours:.2g} hours with {workers} workers"
    return text


def _dry_run(wanted: Sequence[Point], folder: pathlib.Path) -> None:
    standings = Standings(folder)
    for point in wanted:
        result, other = standings.result(point), standings.other(point)
        state = f"  {result['reason']}" if result else other and f"  holds {other}"
        print(f"{point.name}  {point.label()}{state}")
    print(cost(wanted, folder, _WORKERS.value))


def _launcher_options() -> dict[str, str | int]:
    """The options of the chosen launcher.

    Raises:
      UserError: if it has no such option.
    """
    name = _LAUNCHER.value
    if _SLURM.value and name != "slurm":
        raise UserError(f"--slurm: given {_SLURM.value}, --launcher is {name}")
    known = LAUNCHERS[name].OPTIONS
    found = {}
    for flag in (_SLURM, _LAUNCHER_OPTIONS):
        for word in flag.value:
            option, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"--{flag.name}: given {word!r}, allowed name=value")
            if known is not None and option not in known:
                allowed = ", ".join(known) or "none"
                raise UserError(
                    f"--{flag.name}: {option}: no option of --launcher={name}, allowed "
                    f"{allowed}{nearest(option, known)}"
                )
            if option in found:
                raise UserError(f"--{flag.name}: {option} is given twice")
            found[option] = int(value) if value.isdigit() else value
    return found


def _check_launcher(wanted: Sequence[Point]) -> None:
    """Raises a `UserError` for what the chosen launcher cannot do."""
    name = _LAUNCHER.value
    if not LAUNCHERS[name].blocks:
        return
    instead = ", ".join(x for x in LAUNCHERS if not LAUNCHERS[x].blocks)
    more = f"not with --launcher={name}, which stops no run; allowed {instead}"
    if _HANG_SECONDS.value is not None:
        raise UserError(f"--hang_seconds: {more}")
    for point in wanted:
        if point.part.pruning:
            where = f"{point.part.name}: " if point.part.name else ""
            raise UserError(f"--sweep: {where}pruning: {more}")


def _help(overrides: list[str]) -> str:
    """Keys, options, and the fields of the first part of the sweep file beside it."""
    entries = [
        "Keys of what get_sweep() of a sweep file returns, a dictionary or a list of "
        "them:",
        *(command.entry(key, said) for key, said in parts.KEYS.items()),
    ]
    for name, launcher in LAUNCHERS.items():
        known = launcher.OPTIONS
        entries.append(f"\nLauncher options of --launcher={name}:")
        if known is None:
            known = {"*": "sbatch's options, such as partition=gpu,time=600"}
        entries += [command.entry(x, said) for x, said in known.items()] or ["  none"]
    config, words = None, []
    if _SWEEP.value:
        try:
            first = parts.read(_SWEEP.value)[0]
            config = first.config
            words = [f"--config.{x}={value}" for x, value in first.overrides.items()]
        except UserError as error:
            entries.append(f"\n{error}")
    return "\n".join([*entries, "", field_help.describe(config, [*words, *overrides])])


def main(positional: list[str], overrides: list[str]) -> int:
    """Runs the sweep, and returns the exit status."""
    command.no_arguments(positional)
    command.require(sweep=_SWEEP.value)
    wanted = points.load(_SWEEP.value, overrides)
    name = pathlib.Path(_SWEEP.value).stem
    folder = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    if _DRY_RUN.value:
        _dry_run(wanted, folder)
        return 0
    options = _launcher_options()
    _check_launcher(wanted)
    cost(wanted[:1], None, 1)  # a config that cannot be trained stops here
    launcher = LAUNCHERS[_LAUNCHER.value](_WORKERS.value, folder, options)
    url = _STORAGE.value
    if not url:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir: {error.filename}: {error.strerror}") from error
        url = of_file(folder / "optuna.db")
    trials = Trials(
        *(Storage(url), name, wanted, folder),
        attempts=ATTEMPTS,
        anew=_RETRY_FAILED.value,
    )
    sweep = Sweep(wanted, folder, trials, launcher, _HANG_SECONDS.value)
    sweep.check(overwrite=_OVERWRITE.value)
    status = sweep.run()
    sweep.board.summary()
    return status


if __name__ == "__main__":
    command.run(main, _FLAGS, epilogue=_help)
