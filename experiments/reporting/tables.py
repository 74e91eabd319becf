"""The tables: one of methods, one of runs, as text and as Markdown."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.reporting import spikes
from experiments.reporting.methods import Method, reached_by_study
from experiments.reporting.runs import Run


def runs_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a run, as text; a run that did not complete says so."""
    rows = []
    for run in runs:
        loss = run.result.get("val_loss")
        rows.append(
            {
                "optimizer, schedule": run.name,
                "rate": f"{run.rate:g}",
                "val loss": "-" if loss is None else f"{loss:.4f}",
                "steps": str(run.result.get("steps", len(run.records))),
                "seconds": f"{run.result.get('seconds', 0):.0f}",
                "state bytes": f"{run.result.get('optimizer_state_bytes', 0):,}",
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
    for method in methods:
        lost = method.diverged
        loss = "-" if method.loss is None else f"{method.loss:.4f}"
        if method.loss is not None and math.isinf(method.loss):
            loss = "diverged"
        rows.append(
            {
                "optimizer": (method.name, method.name),
                "rate": (f"{method.rate:g}", method.rate),
                "val loss": (loss, method.loss),
                "spread": _cell(method.spread, ".4f"),
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


def csv_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row a run, with all its numbers."""
    rows = []
    for run in runs:
        result = run.result
        times = [record["step_seconds"] for record in run.records]
        rows.append(
            {
                "method": run.name,
                "optimizer": run.config["optimizer"]["name"],
                "schedule": run.config["schedule"]["name"],
                "learning_rate": run.rate,
                "seed": run.config["seed"],
                "val_loss": result.get("val_loss"),
                "best_val_loss": result.get("best_val_loss"),
                "steps": result.get("steps", len(run.records)),
                "seconds": result.get("seconds"),
                "step_seconds": statistics.median(times) if times else None,
                "optimizer_state_bytes": result.get("optimizer_state_bytes"),
                "peak_memory_bytes": result.get("peak_memory_bytes"),
                "reason": run.reason,
                "folder": run.folder.name,
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *(list(row.values()) for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _study(method: Method, baseline: Method, unit: str) -> tuple[str, float | None]:
    loss = baseline.loss
    score = None if loss is None else reached_by_study(method, loss, unit)
    return _cell(score, ".0f" if unit == "step" else ".1f")


def _recovery(method: Method) -> tuple[str, float | None]:
    taken = spikes.recovery(method)
    return ("not", taken) if taken == math.inf else _cell(taken, ".0f")


def _cell(value: float | None, form: str) -> tuple[str, float | None]:
    return ("-" if value is None else format(value, form)), value
