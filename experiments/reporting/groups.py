"""Tables of runs that learn groups of classes one after another."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from experiments.reporting.runs import Run
from experiments.reporting.thinning import number


class _Groups(NamedTuple):
    """What a run knows of groups of classes that it learns in turn, at a step."""

    step: int
    accuracy: dict[str, float]
    forgotten: float
    rank: float | None


def _groups(run: Run) -> list[_Groups]:
    found, best, start = [], {}, "val_accuracy_"
    for record in run.validation():
        now = {
            name.removeprefix(start): value
            for name in record
            if name.startswith(start) and (value := number(record[name])) is not None
        }
        if not now:
            continue
        best = {n: max(x, best.get(n, x)) for n, x in now.items()}
        lost = sum(best[n] - x for n, x in now.items()) / len(now)
        rank = number(record.get("val_effective_rank"))
        found.append(_Groups(record["step"], now, lost, rank))
    return found


def table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row an evaluation of runs that learn groups of classes in turn.

    `forgotten` is the mean over the groups of the best accuracy so far less that now.
    """
    rows = [
        {
            "optimizer, schedule": run.name,
            "seed": str(run.seed),
            "step": str(seen.step),
            **{f"accuracy {n}": f"{x:.3f}" for n, x in seen.accuracy.items()},
            "forgotten": f"{seen.forgotten:.3f}",
            "effective rank": "-" if seen.rank is None else f"{seen.rank:.2f}",
        }
        for run in runs
        for seen in _groups(run)
    ]
    return rows if all(row.keys() == rows[0].keys() for row in rows) else []


def summary(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a method and rate, at the end of its runs: means over the seeds."""
    ends: dict[tuple[str, float], list[_Groups]] = {}
    for run in runs:
        if seen := _groups(run):
            ends.setdefault((run.name, run.rate), []).append(seen[-1])

    def row(
        name: str, rate: float, seen: list[_Groups]
    ) -> tuple[float, dict[str, str]]:
        shares = [statistics.mean(x.accuracy.values()) for x in seen]
        ranks = [x.rank for x in seen if x.rank is not None]
        return statistics.mean(shares), {
            "optimizer, schedule": name,
            "rate": f"{rate:g}",
            "seeds": str(len(seen)),
            "mean accuracy of groups": f"{statistics.mean(shares):.3f}",
            "of the seeds": f"{min(shares):.3f} to {max(shares):.3f}",
            "forgotten": f"{statistics.mean(x.forgotten for x in seen):.3f}",
            "effective rank": f"{statistics.mean(ranks):.2f}" if ranks else "-",
        }

    rows = [row(*key, seen) for key, seen in ends.items()]
    return [text for _, text in sorted(rows, key=lambda pair: -pair[0])]
