"""What a spike of the gradient does to the loss, and how long that stays."""

import statistics
from collections.abc import Sequence

from experiments.reporting.methods import Method
from experiments.reporting.runs import Run

# Batches differ, so that a level is a mean over a few of them.
WINDOW = 5
_SHOWN = 40


def spacing(run: Run) -> int:
    """Steps from one injected spike to the next, 0 where there are none."""
    return run.config.get("faults", {}).get("spike_every", 0)


def around(run: Run) -> list[tuple[dict[int, float], float]]:
    """For each spike the losses by steps since, and their level before.

    The loss of the spike's own step, 0, is that before its update. A loss that is not
    finite is missing.
    """
    every = spacing(run)
    if not every:
        return []
    losses = {r["step"]: r["loss"] for r in run.records if r.get("loss") is not None}
    found = []
    for spike in range(every, max(losses, default=0), every):
        before = [losses.get(step) for step in range(spike - WINDOW + 1, spike + 1)]
        level = [loss for loss in before if loss is not None]
        since = {
            step - spike: losses[step]
            for step in range(spike - WINDOW + 1, spike + every)
            if step in losses
        }
        if level:
            found.append((since, statistics.fmean(level)))
    return found


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
    return any(around(run) for method in methods for run in method.tuned)
