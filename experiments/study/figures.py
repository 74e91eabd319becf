"""What the figures of the claims show; the axes are drawn as a report draws them."""

import functools
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.reporting import escape
from experiments.reporting import figures as drawn
from experiments.reporting.looks import INK, LIGHT, Pen
from experiments.study import rules
from experiments.study.arms import RATE
from experiments.study.results import Results, Tried

# Lines that one panel can show with their intervals.
_WITH_BANDS = 3


def rates(results: Results) -> Figure | None:
    """Final loss against the rate; None without a run, as with all figures here.

    Lines have all else at its centre and the first seed, or all seeds where every rate
    has them; a star is the best trial where other values were tuned after the rate,
    with the first seed. A cross is a loss above the axis.
    """
    methods = results.lines()
    if not methods:
        return None

    def draw(axes: Axes, focus: int | None = None) -> None:
        drawn.draw_rates(axes, methods, focus)
        low, high = axes.get_ylim()
        for i, method in enumerate(methods):
            tried = results[method.name]
            on_line = {values for values, _ in tried.rates}
            if tried.best in on_line or 0 not in tried.runs:
                continue
            loss = min(tried.runs[0].capped, high)
            low = min(low, loss - 0.05 * (high - low))
            style = {"marker": "*", "markersize": 11, "zorder": 3}
            Pen(axes, i, focus).points("tuned", [tried.chosen[RATE]], [loss], **style)
        axes.set_ylim(bottom=low)
        label = "peak learning rate"
        if not results.everywhere:
            label += "; lines and stars: first seed, dots: others"
        axes.set(xlabel=label)

    return drawn.draw_all([drawn.Drawing("", draw)], methods)


def curves(results: Results, names: Sequence[str]) -> Figure:
    """Validation loss against the steps, at the best trials of the arms named.

    Args:
      results: of the claim.
      names: of arms that have runs, in the legend's order.
    """
    methods = {method.name: method for method in results.tuned()}
    chosen = [methods[name] for name in names]
    return drawn.figure(functools.partial(drawn.draw_losses, methods=chosen))


def gains(results: Results) -> Figure | None:
    """How much lower each arm's loss is than its base's, with its interval."""
    found = rules.gains(results)
    if not found:
        return None

    def draw(axes: Axes) -> None:
        places = range(len(found))
        means = [gain.mean for gain in found.values()]
        below = [gain.mean - gain.low for gain in found.values()]
        above = [gain.high - gain.mean for gain in found.values()]
        axes.errorbar(means, places, xerr=(below, above), fmt="o", color=LIGHT[0])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(places, [escape.label(name) for name in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        bases = {results.base(results[name]).name for name in found}
        name = escape.label(*bases) if len(bases) == 1 else "the first of its setting"
        axes.set(xlabel=f"gain over {name} (nats of loss, 95% interval)")

    made = drawn.figure(draw)
    made.set_size_inches(7, 0.9 + 0.28 * len(found))
    return made


def losses_and_states(results: Results) -> Figure | None:
    """Final loss against the bytes of the optimizer's state."""
    methods = results.tuned()
    if not methods:
        return None
    draw = functools.partial(drawn.draw_memory, methods=methods)
    return drawn.draw_all([drawn.Drawing("", draw, apart=False)], methods)


def losses(tried: Tried) -> list[float]:
    """The final losses of an arm's best trial, by seed."""
    return [row.capped for row in tried.runs.values()]


def sensitivities(tried: Tried) -> list[float]:
    """An arm's sensitivity to the rate, by seed, once all its rates have been tried."""
    if any(seed == 0 for _, seed in tried.wanted):
        return []
    return tried.sensitivities


def series(
    results: Results,
    lines: Mapping[str, Mapping[float, str]],
    axis: str,
    *,
    log: bool = True,
    measure: Callable[[Tried], list[float]] = losses,
    label: str = "final validation loss (nats)",
) -> Figure | None:
    """A measure with its intervals along a number that the arms differ in.

    Args:
      results: of the claim.
      lines: label -> number -> arm.
      axis: what the number is.
      log: whether the axis is logarithmic.
      measure: what is shown of an arm, a value for each seed.
      label: what it is.
    """
    known = {
        name: {x: arm for x, arm in arms.items() if measure(results[arm])}
        for name, arms in lines.items()
    }
    if not any(known.values()):
        return None

    def draw(axes: Axes) -> None:
        for i, (name, arms) in enumerate(known.items()):
            values = [measure(results[arm]) for arm in arms.values()]
            pen = Pen(axes, i, None)
            means = [sum(x) / len(x) for x in values]
            pen.line("series", list(arms), means, name)
            if len(known) > _WITH_BANDS:
                continue
            found = [rules.interval(x) for x in values]
            whole = [(x, one) for x, one in zip(arms, found, strict=True) if one]
            places = [x for x, _ in whole]
            low, high = [one.low for _, one in whole], [one.high for _, one in whole]
            pen.band("series-band", places, low, high)
        if log:
            axes.set_xscale("log")
        places = sorted({x for arms in known.values() for x in arms})
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()
        axes.set(xlabel=axis, ylabel=label)

    return drawn.figure(draw)


def spreads(results: Results) -> Figure | None:
    """How far the hidden layers' rates lie apart, against the steps, with seed 0."""
    curves = {
        name: tried.runs[0].layer_spread
        for name, tried in results.items()
        if 0 in tried.runs
    }
    if not any(curves.values()):
        return None

    def draw(axes: Axes) -> None:
        for i, (name, curve) in enumerate(curves.items()):
            Pen(axes, i, None).line("spread", list(curve), list(curve.values()), name)
        axes.set_ylim(0, 1.4)  # the legend stands above the curves
        axes.set_yticks([x / 5 for x in range(6)])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="steps", ylabel="1 - smallest / largest rate of a layer")

    return drawn.figure(draw)
