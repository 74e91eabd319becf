"""What the figures draw: means over seeds, against steps, tokens or seconds."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from experiments.reporting.runs import Run

# More points than a panel has room for say nothing.
_POINTS = 200
# A training loss is that of one batch: means over a hundredth of a run are shown.
_WINDOWS = 100


class Curve(NamedTuple):
    """A mean over runs and its range, by place."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(runs: Sequence[Run], unit: str, field: str) -> Curve:
    """A field of the runs' records against a unit, where all of the runs have it.

    Args:
      runs: with different seeds.
      unit: `step`, `tokens` or `seconds`.
      field: of an evaluation (`val_...`), or `loss`, the training loss.
    """
    ends = [run.records[-1]["step"] for run in runs if run.records]
    every = field.startswith("val_")
    width = 1 if every else int(max(ends, default=0)) // _WINDOWS + 1
    found = [_windows(run, unit, field, width) for run in runs]
    places = sorted(set.intersection(*map(set, found)))
    last = places[-1:]
    places = places[:: len(places) // _POINTS + 1]
    places += last if places[-1:] != last else []
    at = [[windows[place] for windows in found] for place in places]
    values = [[y for _, y in points] for points in at]
    return Curve(
        [statistics.fmean(x for x, _ in points) for points in at],
        [statistics.fmean(losses) for losses in values],
        [min(losses) for losses in values],
        [max(losses) for losses in values],
    )


def _windows(
    run: Run, unit: str, field: str, width: int
) -> dict[int, tuple[float, float]]:
    """The mean of unit and field in each window of so many steps."""
    inside = defaultdict(list)
    for record in run.records:
        if unit in record and field in record:
            # The last step of a window is a multiple of its width.
            place = -(-record["step"] // width)
            inside[place].append((record[unit], record[field]))
    if width == 1:  # a step that was made again counts as it was at last
        return {place: points[-1] for place, points in inside.items()}
    return {
        place: (statistics.fmean(x), statistics.fmean(y))
        for place, (x, y) in (
            (place, zip(*points, strict=True)) for place, points in inside.items()
        )
    }
