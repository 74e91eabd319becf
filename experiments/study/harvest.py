"""From a run's folder to its line in the table."""

import json
import pathlib
import re
import shutil
import statistics
from typing import Any, NamedTuple

import jax
import optax

from experiments import records
from experiments.flops import count_flops
from experiments.points import Point
from experiments.reporting.runs import Run, load_runs
from experiments.study.table import Row, rounded
from experiments.trainer.program import make_program
from optlab.roles import Matrix, leaf_name

_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax")
_INTERVAL = re.compile(r"(hessian|precondition|noise)_interval")


class Shapes(NamedTuple):
    """What follows from a run's shapes alone.

    Attributes:
      flops: of a step, on average over those that make bases and those that do not.
      matrices: names of the hidden matrices.
    """

    flops: int
    matrices: frozenset[str]


def shapes(point: Point) -> Shapes:
    """Counts a point's program, without running it."""
    program = make_program(point.config)
    tx, state, task = program.tx, program.abstract, program.task
    example = program.layout.shapes(next(task.train_iterator(0)))
    batches = (example,) * program.batches_per_step

    def update(grads, opt_state, params):
        extra = {x: 0.0 if x == "value" else grads for x in program.needs}
        updates, new = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), new

    arguments = state, batches, program.peaks
    most = count_flops(program.step, *arguments).total
    # The cheapest step is the one that is skipped: all but the update.
    least = count_flops(program.step, *arguments, cheapest_branch=True).total
    arguments = state.params, state.opt_state, state.params
    least += count_flops(update, *arguments, cheapest_branch=True).total
    kwargs = point.config.optimizer.kwargs
    intervals = [kwargs[name] for name in kwargs if _INTERVAL.fullmatch(name)]
    # Without an interval the most expensive step is the first one alone.
    more = (most - least) // max(intervals) if intervals else 0
    return Shapes(least + more, _matrices(state.params, task.roles))


def row(
    point: Point, fields: dict[str, Any], folder: pathlib.Path, digest: str, of: Shapes
) -> Row:
    """The line of a run that has ended.

    Args:
      point: that was trained.
      fields: that the study set, beside the seed.
      folder: with what the run left.
      digest: of its config.
      of: its shapes.
    """
    run = load_runs([folder])[0]
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    result, times = run.result, run.step_seconds
    return Row(
        digest=digest,
        config=point.part.config,
        overrides=fields,
        seed=run.seed,
        reason=run.reason,
        initial_loss=run.initial_loss,
        val_loss=None if run.diverged else run.loss,
        best_val_loss=result.get("best_val_loss"),
        val_accuracy=run.accuracy,
        train_loss=run.train_loss,
        steps=run.steps,
        tokens=_tokens(run),
        curve={r["step"]: rounded(r["val_loss"]) for r in run.validation()},
        layer_spread=_spreads(folder, of.matrices),
        seconds=result.get("seconds"),
        step_seconds=statistics.median(times) if times else None,
        start_seconds=result.get("start_seconds"),
        total_seconds=result.get("total_seconds"),
        state_bytes=result.get("optimizer_state_bytes"),
        peak_memory_bytes=result.get("peak_memory_bytes"),
        flops=of.flops,
        data=told["data_digest"][:12],
        versions=_versions(told),
    )


def keep_norms(folder: pathlib.Path, kept: pathlib.Path) -> None:
    """Keeps of a run's records what a refined schedule reads."""
    lines = []
    for record in records.read(folder / records.NAME):
        norms = {x: record.get(x) for x in ("grad_norm", "grad_norm_l1")}
        known = {x: rounded(y) for x, y in norms.items() if isinstance(y, int | float)}
        lines.append(json.dumps({"step": record["step"]} | known))
    kept.mkdir(parents=True, exist_ok=True)
    (kept / records.NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def clear(folder: pathlib.Path) -> None:
    """Removes the large part of what a run left, once its line is written."""
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _matrices(params: Any, roles: Any) -> frozenset[str]:
    """The names of the leaves that are hidden matrices."""
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    return frozenset(
        leaf_name(path) for path, leaf in found if isinstance(roles(path, leaf), Matrix)
    )


def _tokens(run: Run) -> int | None:
    return next(
        (int(r["tokens"]) for r in reversed(run.records) if "tokens" in r), None
    )


def _spreads(folder: pathlib.Path, matrices: frozenset[str]) -> dict[int, float]:
    """Step -> one minus the smallest rate of a hidden layer over the largest."""
    spreads = {}
    for record in records.read(folder / records.NAME):
        rates = record.get("layer_rate")
        if not isinstance(rates, dict):
            continue
        own = [
            rate
            for name, rate in rates.items()
            if re.sub(r"(/\d+)*$", "", name) in matrices or name in matrices
        ]
        if own and max(own) > 0:
            spreads[record["step"]] = rounded(1 - min(own) / max(own))
    return spreads


def _versions(told: dict[str, Any]) -> str:
    packages = told.get("packages") or {}
    words = [f"python {told.get('python')}"]
    words += [f"{name} {packages[name]}" for name in _PACKAGES if name in packages]
    return ", ".join([*words, f"commit {str(told.get('git_commit'))[:12]}"])
