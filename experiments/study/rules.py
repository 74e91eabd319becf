"""What decides about a claim: differences and ratios over the seeds, with intervals.

Two arms are compared seed by seed, which take the same weights and data; the interval
is Student's at 95%. Where one of them diverged, the loss before the first step
stands for that at the end. A rule says that the claim holds where the whole interval
does, that it does not where none of it does, and else that nothing is decided.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from experiments.study.results import Results, Tried
from experiments.study.table import Row

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not decided at this size"
NOT_RUN = "not enough runs yet"
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over seeds and the interval about it."""

    mean: float
    low: float
    high: float

    def text(self, form: str = "+.4f") -> str:
        """As the tables have it."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


class Verdict(NamedTuple):
    """What became of a claim.

    Attributes:
      word: one of the four above.
      sentence: what was found, with its numbers.
      interval: of the number that decided; None where there is no such number.
    """

    word: str
    sentence: str
    interval: str = ""


def interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    if max(values) == min(values):
        return Interval(mean, mean, mean)
    found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Interval(mean, float(found.low), float(found.high))


def paired(
    first: Tried, second: Tried, measure: Callable[[Row], float]
) -> list[tuple[float, float]]:
    """A measure of both, for the seeds that both have."""
    seeds = sorted(first.runs.keys() & second.runs.keys())
    return [(measure(first.runs[s]), measure(second.runs[s])) for s in seeds]


def gain(first: Tried, second: Tried) -> Interval | None:
    """How much lower the loss of the first is than that of the second, in nats."""
    pairs = paired(first, second, lambda row: row.capped)
    return interval([b - a for a, b in pairs])


def gains(results: Results) -> dict[str, Interval]:
    """Arm -> its gain over the first arm of its setting, where both have runs."""
    found = {}
    for name, tried in results.items():
        base = results.base(tried)
        if base is not tried and (known := gain(tried, base)):
            found[name] = known
    return found


def steps_to(row: Row, target: float) -> float:
    """The steps to a loss, between two evaluations on a straight line; inf if never."""
    before = (1, row.initial_loss if row.initial_loss is not None else math.inf)
    for step, loss in row.curve.items():
        if loss <= target:
            start, high = before
            if not math.isfinite(high) or high <= loss:
                return float(step)
            return start + (step - start) * (high - target) / (high - loss)
        before = step, loss
    return math.inf


def speedup(first: Tried, second: Tried) -> Interval | None:
    """How many times fewer steps the first takes to the final loss of the second.

    An arm that does not get there with some seed has not been shown to take fewer: its
    ratio is then the share of the steps that the second takes to the first's loss.
    """
    seeds = sorted(first.runs.keys() & second.runs.keys())
    logs = []
    for seed in seeds:
        mine, other = first.runs[seed], second.runs[seed]
        taken = steps_to(mine, other.capped)
        ratio = other.steps / taken
        if math.isinf(taken):
            ratio = min(steps_to(other, mine.capped) / mine.steps, 1.0)
        logs.append(math.log(ratio) if ratio > 0 else -math.inf)
    if any(map(math.isinf, logs)):
        return None
    found = interval(logs)
    return found and Interval(*map(math.exp, found))


def judged(found: Interval | None, least: float, what: str, form: str) -> Verdict:
    """Whether a number is above a limit.

    Args:
      found: with its interval.
      least: the limit.
      what: the sentence, with `{}` where the number goes.
      form: of it.
    """
    if found is None:
        return Verdict(NOT_RUN, what.format("-"))
    word = OPEN
    if found.low > least:
        word = HOLDS
    elif found.high <= least:
        word = FAILS
    text = found.text(form)
    return Verdict(word, what.format(text), text)


def lower_loss(results: Results, first: str, second: str, by: float = 0.0) -> Verdict:
    """Whether the first arm's loss is lower than the second's by more than that."""
    found = gain(results[first], results[second])
    what = f"the loss of `{second}` less that of `{first}` is {{}} nats"
    return judged(found, by, what, "+.4f")


def no_worse(results: Results, first: str, second: str, margin: float) -> Verdict:
    """Whether the first arm's loss is at most so much above the second's."""
    found = gain(results[first], results[second])
    what = f"the loss of `{second}` less that of `{first}` is {{}} nats"
    return judged(found, -margin, what, "+.4f")


def fewer_steps(
    results: Results, first: str, second: str, times: float = 1.0
) -> Verdict:
    """Whether the first takes `times` times fewer steps to the second's final loss."""
    found = speedup(results[first], results[second])
    what = f"`{first}` takes {{}} times fewer steps to the final loss of `{second}`"
    return judged(found, times, what, ".2f")


def less_sensitive(results: Results, first: str, second: str) -> Verdict:
    """Whether the first arm loses less by a wrong rate, over the seeds of the grid."""
    pairs = zip(*(results[x].sensitivities for x in (first, second)), strict=False)
    found = interval([b - a for a, b in pairs])
    what = f"the sensitivity of `{second}` less that of `{first}` is {{}} nats"
    return judged(found, 0.0, what, "+.4f")


def smaller(
    results: Results, first: str, second: str, field: str, times: float = 1.0
) -> Verdict:
    """Whether a measure that no seed changes is `times` times smaller.

    Args:
      results: of the claim.
      first: an arm.
      second: another one.
      field: of a row, such as `state_bytes`.
      times: what the ratio has to reach.
    """
    mine, other = results[first].median(field), results[second].median(field)
    what = field.replace("_", " ")
    if not mine or not other:
        return Verdict(NOT_RUN, f"the {what} of `{first}` and `{second}` are not known")
    ratio = other / mine
    sentence = f"the {what} of `{second}` are {ratio:.2f} times those of `{first}`"
    return Verdict(HOLDS if ratio >= times else FAILS, sentence, f"{ratio:.2f}")


def within(
    found: Interval | None, low: float, high: float, what: str, form: str
) -> Verdict:
    """Whether a number lies between two limits; the arguments are those of `judged`."""
    if found is None:
        return Verdict(NOT_RUN, what.format("-"))
    word = OPEN
    if low <= found.low and found.high <= high:
        word = HOLDS
    elif found.high < low or found.low > high:
        word = FAILS
    text = found.text(form)
    return Verdict(word, what.format(text), text)


def best_of(*verdicts: Verdict) -> Verdict:
    """A claim that may be read in several ways: it holds if one of them does."""
    words = [verdict.word for verdict in verdicts]
    word = next(w for w in (NOT_RUN, HOLDS, OPEN, FAILS) if w in words)
    return _joined(word, verdicts)


def all_of(*verdicts: Verdict) -> Verdict:
    """A claim of several parts: it holds if all do, and fails if one does."""
    words = [verdict.word for verdict in verdicts]
    word = next((w for w in (NOT_RUN, FAILS, OPEN) if w in words), HOLDS)
    return _joined(word, verdicts)


def _joined(word: str, verdicts: Sequence[Verdict]) -> Verdict:
    parts = [f"{x.sentence} ({x.word})" for x in verdicts]
    intervals = [x.interval for x in verdicts if x.interval]
    return Verdict(word, "; ".join(parts), "; ".join(intervals))


def share_of(verdicts: Mapping[str, Verdict], least: float = 1.0) -> Verdict:
    """A claim about many cases: it holds if enough of them do.

    Args:
      verdicts: case -> its verdict.
      least: share of the cases that has to hold; it fails where that cannot be reached.
    """
    words = [verdict.word for verdict in verdicts.values()]
    count, good, bad = len(words), words.count(HOLDS), words.count(FAILS)
    if NOT_RUN in words:
        word = NOT_RUN
    elif good >= least * count:
        word = HOLDS
    else:
        word = FAILS if count - bad < least * count else OPEN
    cases = "; ".join(f"{name}: {x.word}, {x.sentence}" for name, x in verdicts.items())
    return Verdict(word, cases, f"{good} of {count} hold, {bad} do not")
