"""Methods compared: each at its best rate, over its seeds, against a baseline."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.errors import UserError, nearest
from experiments.reporting.runs import Run, by_loss
from experiments.reporting.thinning import LOGITS


class Method(NamedTuple):
    """All runs of one method, and its numbers at the tuned rate.

    Attributes:
      name: as the runs have it.
      runs: all of them, by rate and seed.
      rate: that with the lowest mean loss over the seeds that all rates have.
      loss: mean over all its seeds, in nats; infinite if one diverged, None if none has
        finished.
      spread: standard deviation (n - 1) over the seeds, None for a single one.
      steps_to: steps to the baseline's loss, mean over the seeds; None if not reached.
      seconds_to: seconds of training to it.
      sensitivity: to the learning rate, over the seeds that all rates have; None for
        fewer than two rates.
      state_bytes: of the optimizer's state.
      step_seconds: the median.
      train_loss: mean over its seeds of the last tenth of the training losses.
      accuracy: that of the last evaluation, mean over its seeds; None without one.
    """

    name: str
    runs: list[Run]
    rate: float
    loss: float | None
    spread: float | None
    steps_to: float | None
    seconds_to: float | None
    sensitivity: float | None
    state_bytes: int | None
    step_seconds: float | None
    train_loss: float | None
    accuracy: float | None

    @property
    def tuned(self) -> list[Run]:
        """The runs at the tuned rate."""
        return [run for run in self.runs if run.rate == self.rate]

    @property
    def edge(self) -> str | None:
        """`lowest` or `highest` where no rate beyond the tuned one has ended."""
        rates = sorted(counting(self.runs))
        if len(rates) < 2:
            return None
        return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.rate)

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(run.diverged for run in self.runs)


def known_logits(methods: Iterable[Method]) -> list[str]:
    """The fields of `thinning.LOGITS` that some run has."""
    runs = [run for method in methods for run in method.runs]
    return [x for x in LOGITS if any(run.largest(x) is not None for run in runs)]


def compare(
    runs: Sequence[Run], baseline: str | None = None
) -> tuple[list[Method], Method]:
    """Gathers runs into methods.

    Args:
      runs: from `load_runs`.
      baseline: a method or an optimizer by name; the best of an optimizer's methods is
        taken. AdamW if not given, else the first method.

    Returns:
      The methods, those of the lowest loss first and the diverged last, and which of
      them is the baseline.

    Raises:
      UserError: if there is no such baseline.
    """
    grouped = defaultdict(list)
    for run in runs:
        grouped[run.name].append(run)
    methods = [_method(name, grouped[name]) for name in sorted(grouped)]
    methods.sort(key=by_loss)
    base = _baseline(methods, baseline)
    return [_reaching(method, base.loss) for method in methods], base


def _baseline(methods: list[Method], wanted: str | None) -> Method:
    name = wanted or "adamw"
    found = [
        method
        for method in methods
        if name in (method.name, method.runs[0].config["optimizer"]["name"])
    ]
    if wanted and not found:
        known = [method.name for method in methods]
        raise UserError(
            f"--baseline: given {wanted!r}, allowed {'; '.join(known)}"
            f"{nearest(wanted, known)}"
        )
    finished = [method for method in found if method.loss is not None]
    return min(finished or found or methods[:1], key=by_loss)


def _method(name: str, runs: list[Run]) -> Method:
    runs = sorted(runs, key=lambda run: (run.rate, run.seed))
    means = {
        rate: statistics.fmean(run.loss for run in found)
        for rate, found in counting(runs).items()
    }
    rate = min(means, key=lambda r: (means[r], r)) if means else runs[0].rate
    tuned = [run for run in runs if run.rate == rate]
    losses = [run.loss for run in tuned if run.loss is not None]
    several = len(losses) > 1 and math.isfinite(sum(losses))
    times = [seconds for run in tuned for seconds in run.step_seconds]
    return Method(
        name=name,
        runs=runs,
        rate=rate,
        loss=_mean(losses),
        spread=statistics.stdev(losses) if several else None,
        steps_to=None,
        seconds_to=None,
        sensitivity=sensitivity(runs),
        state_bytes=tuned[0].result.get("optimizer_state_bytes"),
        step_seconds=statistics.median(times) if times else None,
        train_loss=_mean(run.train_loss for run in tuned),
        accuracy=_mean(run.accuracy for run in tuned),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def counting(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """Rate -> its runs that have ended, by which rates are compared.

    Those with the seeds that all rates have: a best rate's further seeds are neither
    handicap nor help. All of a rate's runs count where no seed is common, and where one
    of them diverged.
    """
    ended = defaultdict(list)
    for run in runs:
        if run.loss is not None:
            ended[run.rate].append(run)
    seeds = [{run.seed for run in found} for found in ended.values()]
    common = set.intersection(*seeds) if seeds else set()
    return {
        rate: found
        if not common or any(run.diverged for run in found)
        else [run for run in found if run.seed in common]
        for rate, found in ended.items()
    }


def sensitivity(runs: Sequence[Run]) -> float | None:
    """How much is lost by a wrong rate: mean over the rates less the least.

    The mean over a log-spaced grid of `min(loss(rate), loss at the start)` minus its
    minimum (Wortsman et al., arXiv 2309.14322, section 2.2), of the runs that count; a
    diverged run has the loss at the start.
    """
    means = []
    for found in counting(runs).values():
        known = [(run.loss, run.initial_loss) for run in found]
        capped = [min(loss, start) for loss, start in known if start is not None]
        if capped:
            means.append(statistics.fmean(capped))
    return statistics.fmean(means) - min(means) if len(means) > 1 else None


def reached_by_study(method: Method, target: float, unit: str) -> float | None:
    """AlgoPerf's score: time to a loss, with a method tuned again in each study.

    A study is all runs with one seed, and as good as the one that gets there first; the
    median over the studies, None if most do not get there (arXiv 2306.07179, 4.4).

    Args:
      method: from `compare`.
      target: the loss to reach, in nats.
      unit: `seconds` (of training, AlgoPerf's own) or `step`.
    """
    best: dict[int, float] = {}
    for run in method.runs:
        reached = [r for r in run.validation() if r["val_loss"] <= target]
        taken = [record[unit] for record in reached if unit in record]
        best[run.seed] = min(best.get(run.seed, math.inf), *taken, math.inf)
    score = statistics.median_high(best.values())
    return score if math.isfinite(score) else None


def _reaching(method: Method, target: float | None) -> Method:
    """The method with its steps and seconds to a loss."""
    reached = [
        next((r for r in run.validation() if r["val_loss"] <= target), None)
        for run in method.tuned
        if target is not None and math.isfinite(target)
    ]
    if not reached or None in reached:
        return method
    return method._replace(
        steps_to=_mean(record["step"] for record in reached),
        seconds_to=_mean(record.get("seconds") for record in reached),
    )
