"""What a spike of the gradient does to the loss, and how long that stays."""

import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.reporting.methods import Method
from experiments.reporting.runs import Run

# Batches differ, so that a level is a mean over a few of them.
WINDOW = 5
_SHOWN = 40


def spacing(run: Run) -> int:
    """Steps from one injected spike to the next, 0 where there are none."""
    return run.config["faults"]["spike_every"] if len(run.losses[0]) else 0


def around(run: Run) -> Iterator[tuple[dict[int, float], float]]:
    """For each spike the losses by steps since, and their level before.

    The loss of the spike's own step, 0, is that before its update. A loss that is not
    finite is missing.
    """
    every = spacing(run)
    if not every:
        return
    steps, losses = run.losses
    for spike in range(every, int(steps[-1]), every):
        first, last = np.searchsorted(steps, [spike - WINDOW + 1, spike + every])
        at = (steps[first:last] - spike).astype(int).tolist()
        since = dict(zip(at, losses[first:last].tolist(), strict=True))
        level = [loss for step, loss in since.items() if step <= 0]
        if level:
            yield since, statistics.fmean(level)


def steps_to_recover(since: dict[int, float], level: float) -> int | None:
    """The first step whose loss and the next ones' average at most the level before.

    None if that does not happen before the next spike.
    """
    for step in range(1, max(since, default=0) - WINDOW + 2):
        window = [since.get(step + i) for i in range(WINDOW)]
        if None not in window and statistics.fmean(window) <= level:
            return step
    return None


def recovery(method: Method) -> float | None:
    """Median of the steps to recover at the tuned rate; infinite: most times not."""
    taken = [
        float("inf") if steps is None else steps
        for run in method.tuned
        for steps in (steps_to_recover(*spike) for spike in around(run))
    ]
    return statistics.median_high(taken) if taken else None


def rise(method: Method) -> tuple[list[int], list[float]]:
    """Steps since a spike, and the median over the spikes of the loss above before."""
    above: dict[int, list[float]] = {}
    for run in method.tuned:
        for since, level in around(run):
            for step, loss in since.items():
                if step <= _SHOWN:
                    above.setdefault(step, []).append(loss - level)
    steps = sorted(above)
    return steps, [statistics.median(above[step]) for step in steps]


def has_spikes(methods: Sequence[Method]) -> bool:
    """Whether spikes were injected into a run that is shown."""
    return any(True for method in methods for run in method.tuned for _ in around(run))
