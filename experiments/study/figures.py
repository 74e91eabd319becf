"""What the figures of the claims show; the axes are drawn as a report draws them."""

import functools
from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import escape
from experiments.reporting import figures as drawn
from experiments.reporting.looks import INK, LIGHT, Pen
from experiments.study import rules
from experiments.study.results import Results

# Lines that one panel can show with their intervals.
_WITH_BANDS = 3


def rates(results: Results) -> Figure | None:
    """Final loss against the rate; None without a run, as with all figures here."""
    return _of_methods(results, drawn.draw_rates)


def gains(results: Results) -> Figure | None:
    """How much lower each arm's loss is than that of the first, with its interval."""
    first, *others = results.values()
    found = {x.name: gain for x in others if (gain := rules.gain(x, first))}
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
        axes.invert_yaxis()
        axes.set(xlabel=f"nats below {escape.label(first.name)}, with the interval")

    made = drawn.figure(draw)
    made.set_size_inches(7, 0.9 + 0.28 * len(found))
    return made


def losses_and_states(results: Results) -> Figure | None:
    """Final loss against the bytes of the optimizer's state."""
    return _of_methods(results, drawn.draw_memory, apart=False)


def series(
    results: Results,
    lines: Mapping[str, Mapping[float, str]],
    axis: str,
    *,
    log: bool = True,
) -> Figure | None:
    """Losses with their intervals along a number that the arms differ in.

    Args:
      results: of the claim.
      lines: label -> number -> arm.
      axis: what the number is.
      log: whether the axis is logarithmic.
    """
    known = {
        label: {x: arm for x, arm in arms.items() if results[arm].runs}
        for label, arms in lines.items()
    }
    if not any(known.values()):
        return None

    def draw(axes: Axes) -> None:
        for i, (label, arms) in enumerate(known.items()):
            losses = [
                [row.capped for row in results[arm].runs.values()]
                for arm in arms.values()
            ]
            pen = Pen(axes, i, None)
            pen.line("series", list(arms), [sum(x) / len(x) for x in losses], label)
            if len(known) > _WITH_BANDS:
                continue
            found = [rules.interval(x) for x in losses]
            whole = [(x, one) for x, one in zip(arms, found, strict=True) if one]
            places = [x for x, _ in whole]
            low, high = [one.low for _, one in whole], [one.high for _, one in whole]
            pen.band("series-band", places, low, high)
        if log:
            axes.set_xscale("log")
        axes.set(xlabel=axis, ylabel="final validation loss (nats)")

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
        axes.set(xlabel="steps", ylabel="1 - smallest / largest rate of a layer")

    return drawn.figure(draw)


def _of_methods(
    results: Results, *draws: Callable[..., None], apart: bool = True
) -> Figure | None:
    found = results.methods()
    if found is None:
        return None
    made = [
        drawn.Drawing("", functools.partial(draw, methods=found[0]), apart)
        for draw in draws
    ]
    return drawn.draw_all(made, found[0])
