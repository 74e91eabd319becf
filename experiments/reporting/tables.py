"""The tables: one of methods, one of runs, as rows of text."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.reporting import spikes
from experiments.reporting.methods import Method, known_logits, reached_by_study
from experiments.reporting.runs import Run, by_loss


def runs_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a run, as text, by loss; a run that did not complete says so."""
    rows = []
    accurate = any(run.accuracy is not None for run in runs)
    for run in sorted(runs, key=by_loss):
        result = run.result
        seconds, state = result.get("seconds"), result.get("optimizer_state_bytes")
        rows.append(
            {
                "optimizer, schedule": run.name,
                "rate": f"{run.rate:g}",
                "val loss": _text(result.get("val_loss"), ".4f"),
                **({"accuracy": _text(run.accuracy, ".4f")} if accurate else {}),
                "train loss": _text(run.train_loss, ".4f"),
                "steps": str(run.steps),
                "seconds": _text(seconds or 0, ".0f"),
                "state bytes": _text(state or 0, ","),
                "ended": run.reason,
            }
        )
    return rows


def methods_table(
    methods: Sequence[Method], baseline: Method, *, studies: bool = False
) -> list[dict[str, tuple[str, Any]]]:
    """One row a method; a cell is its text and the number to sort it by.

    With `studies` there is AlgoPerf's score too, every seed being a study.
    """
    rows = []
    spiked = spikes.has_spikes(methods)
    accurate = any(method.accuracy is not None for method in methods)
    for method in methods:
        lost, edge = method.diverged, method.edge
        loss = "-" if method.loss is None else f"{method.loss:.4f}"
        if method.loss is not None and math.isinf(method.loss):
            loss = "diverged"
        rows.append(
            {
                "optimizer": (method.name, method.name),
                "rate": (
                    f"{method.rate:g}" + (f" ({edge} tried)" if edge else ""),
                    method.rate,
                ),
                "val loss": (loss, method.loss),
                "spread": _cell(method.spread, ".4f"),
                **({"accuracy": _cell(method.accuracy, ".4f")} if accurate else {}),
                "train loss": _cell(method.train_loss, ".4f"),
                f"steps to {baseline.name}": _cell(method.steps_to, ".0f"),
                f"seconds to {baseline.name}": _cell(method.seconds_to, ".1f"),
                **(
                    {
                        "steps, median of studies": _study(method, baseline, "step"),
                        "seconds, median of studies": _study(
                            method, baseline, "seconds"
                        ),
                    }
                    if studies
                    else {}
                ),
                "state bytes": _cell(method.state_bytes, ","),
                "step time (ms)": _cell(
                    None if method.step_seconds is None else 1e3 * method.step_seconds,
                    ".1f",
                ),
                "sensitivity": _cell(method.sensitivity, ".3f"),
                **({"steps to recover": _recovery(method)} if spiked else {}),
                "runs": (
                    f"{len(method.runs)}" + (f", {lost} diverged" if lost else ""),
                    len(method.runs),
                ),
            }
        )
    return rows


def csv_rows(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """One row a run, with all its numbers, by its loss."""
    rows = []
    logits = known_logits(methods)
    tuned = [(run, method) for method in methods for run in method.runs]
    for run, method in sorted(tuned, key=lambda pair: by_loss(pair[0])):
        result, times = run.result, run.step_seconds
        best = run.rate == method.rate
        rows.append(
            {
                "method": run.name,
                "optimizer": run.config["optimizer"]["name"],
                "schedule": run.config["schedule"]["name"],
                "learning_rate": run.rate,
                "seed": run.seed,
                "val_loss": result.get("val_loss"),
                "best_val_loss": result.get("best_val_loss"),
                "train_loss": run.train_loss,
                "val_accuracy": run.accuracy,
                "steps": run.steps,
                "seconds": result.get("seconds"),
                "step_seconds": statistics.median(times) if times else None,
                "optimizer_state_bytes": result.get("optimizer_state_bytes"),
                "peak_memory_bytes": result.get("peak_memory_bytes"),
                **{name: run.largest(name) for name in logits},
                "reason": run.reason,
                "folder": run.folder.name,
                "best_rate": best,
                "edge_of_grid": method.edge if best else None,
            }
        )
    return rows


def _study(method: Method, baseline: Method, unit: str) -> tuple[str, float | None]:
    loss = baseline.loss
    score = None if loss is None else reached_by_study(method, loss, unit)
    return _cell(score, ".0f" if unit == "step" else ".1f")


def _recovery(method: Method) -> tuple[str, float | None]:
    taken = spikes.recovery(method)
    return ("not", taken) if taken == math.inf else _cell(taken, ".0f")


def _cell(value: float | None, form: str) -> tuple[str, float | None]:
    return _text(value, form), value


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
