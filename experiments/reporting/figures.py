"""The figures, each drawn on given axes; notebooks call them too.

Seven colours for white paper and seven of the same hues for a dark page: any two of a
scheme are 25 apart in CIELAB (dE 1976), also as simulated for full protanopia,
deuteranopia and tritanopia (Machado et al., doi 10.1109/TVCG.2009.113), each has a
contrast of 3:1 with its paper, and neighbours differ by 12 in lightness. No two of the
first 44 methods have the same dashes and marker, so that print without colour will do.
"""

import io
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.reporting import spikes
from experiments.reporting.methods import Method, counting

INK = "#1b1f24"
# Found by annealing from hues of Okabe and Ito's for the distances named above.
LIGHT = ("#341976", "#b73c07", "#024f2d", "#c55b83", "#582251", "#0376bc", "#af8d5c")
DARK = ("#3878f6", "#f5a139", "#b0e4c4", "#e6599f", "#a63aa8", "#2ad7ff", "#ba9d73")
# 7, 4 and 11 have no common divisor: places alike in one differ in the others.
_DASHES = ("-", "--", "-.", ":")
MARKERS = "os^DvP*<>ph"
_UNITS = {
    "step": "steps",
    "tokens": "tokens",
    "seconds": "seconds of training, without compiling and evaluating",
}
_WIDTH = 5.5  # of a panel, in inches
_LOSS = "validation loss (nats)"
_STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Look(NamedTuple):
    """How the lines of one method look; `key` is in the ids of its parts."""

    color: str
    linestyle: str
    marker: str
    key: str


def look(index: int) -> Look:
    """The look of a method by its place in the table."""
    return Look(
        LIGHT[index % len(LIGHT)],
        _DASHES[index % len(_DASHES)],
        MARKERS[index % len(MARKERS)],
        f"m{index}",
    )


def draw_losses(axes: Axes, methods: Sequence[Method], unit: str = "step") -> None:
    """Validation loss at the tuned rates, mean and range over the seeds.

    Args:
      axes: to draw on.
      methods: from `compare`.
      unit: `step`, `tokens` or `seconds`.
    """
    tops = [0.0]
    for i, method in enumerate(methods):
        style = look(i)
        curves = [{r["step"]: r for r in run.validation()} for run in method.tuned]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        at = [[curve[step] for curve in curves] for step in steps]
        x = [statistics.fmean(record[unit] for record in found) for found in at]
        y = [[record["val_loss"] for record in found] for found in at]
        means = [statistics.fmean(losses) for losses in y]
        (line,) = axes.plot(
            x,
            means,
            label=_label(method),
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            markevery=max(len(x) // 8, 1),
            linewidth=1.8,
            markersize=5,
        )
        line.set_gid(f"{style.key}--{unit}-line")
        if len(curves) > 1 and x:
            band = axes.fill_between(
                x,
                [min(losses) for losses in y],
                [max(losses) for losses in y],
                color=style.color,
                alpha=0.15,
                linewidth=0,
            )
            band.set_gid(f"{style.key}--{unit}-band")
        if any(run.diverged for run in method.tuned) and x:
            (end,) = axes.plot(x[-1:], means[-1:], "x", color=style.color, ms=10, mew=2)
            end.set_gid(f"{style.key}--{unit}-end")
        starts = [run.initial_loss for run in method.tuned if run.initial_loss]
        tops.append(min([*starts, max(means, default=0.0)], default=0.0))
    if max(tops) > 0:
        axes.set_ylim(top=max(tops) * 1.02)
    axes.set(xlabel=_UNITS[unit], ylabel=_LOSS)
    if unit == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def draw_rates(axes: Axes, methods: Sequence[Method]) -> None:
    """Final loss against the learning rate: a point a run; diverged runs at the top.

    Lines are means over the seeds that all of a method's rates have, by which the best
    is found, with a gap at a rate where such a run is lost. A loss above that of the
    start is drawn as a diverged one, a cross.
    """
    starts = [r.initial_loss for m in methods for r in m.runs if r.initial_loss]
    losses = [
        run.loss
        for method in methods
        for run in method.runs
        if run.loss is not None and math.isfinite(run.loss)
    ]
    low = min(losses, default=0.0)
    worst = max(losses, default=1.0)
    # The room above the worst loss is where lost runs stand.
    high = min(worst, max(starts)) if starts else worst
    top = high + 0.06 * max(high - low, 0.1)
    for i, method in enumerate(methods):
        style = look(i)
        ended = [run for run in method.runs if run.loss is not None]
        lost = [run.rate for run in ended if run.loss > high]
        means = {
            rate: statistics.fmean(run.loss for run in found)
            if all(run.loss <= high for run in found)
            else math.nan
            for rate, found in sorted(counting(method.runs).items())
        }
        number = method.sensitivity
        shown = "" if number is None else f" (sensitivity {number:.3f})"
        (line,) = axes.plot(
            list(means),
            list(means.values()),
            label=method.name + shown,
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            linewidth=1.8,
            markersize=6,
        )
        line.set_gid(f"{style.key}--rates-line")
        kept = [run for run in ended if run.loss <= high]
        (points,) = axes.plot(
            [run.rate for run in kept],
            [run.loss for run in kept],
            color=style.color,
            linestyle="none",
            marker=style.marker,
            markersize=3,
        )
        points.set_gid(f"{style.key}--rates-runs")
        (crosses,) = axes.plot(
            lost, [top] * len(lost), "x", color=style.color, ms=9, mew=2
        )
        crosses.set_gid(f"{style.key}--rates-lost")
    axes.set_xscale("log")
    axes.set_ylim(top=top + 0.04 * max(high - low, 0.1))
    axes.set(xlabel="peak learning rate (cross: diverged)", ylabel="final " + _LOSS)


def draw_memory(axes: Axes, methods: Sequence[Method]) -> None:
    """Final loss at the tuned rate against the bytes of the optimizer's state."""
    for i, method in enumerate(methods):
        if method.loss is None or not math.isfinite(method.loss):
            continue
        style = look(i)
        (point,) = axes.plot(
            [(method.state_bytes or 0) / 1e6],
            [method.loss],
            label=method.name,
            color=style.color,
            marker=style.marker,
            linestyle="none",
            markersize=9,
        )
        point.set_gid(f"{style.key}--memory")
    axes.set(xlabel="optimizer state (MB)", ylabel="final " + _LOSS)


def draw_schedules(axes: Axes, methods: Sequence[Method]) -> None:
    """The learning rate at each step, as a share of its peak."""
    for i, method in enumerate(methods):
        style = look(i)
        run = method.tuned[0]
        known = [
            r for r in run.records if "learning_rate" in r.get("learning_rate", {})
        ]
        (line,) = axes.plot(
            [record["step"] for record in known],
            [record["learning_rate"]["learning_rate"] / run.rate for record in known],
            label=method.name,
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            # Many have the same one: each marker at places of its own.
            markevery=(i / 8 / len(methods), 1 / 8),
            linewidth=1.5,
            markersize=5,
        )
        line.set_gid(f"{style.key}--schedule")
    axes.set(xlabel="steps", ylabel="learning rate / peak")


def draw_spikes(axes: Axes, methods: Sequence[Method]) -> None:
    """Training loss after injected spikes, above that before, median over spikes."""
    for i, method in enumerate(methods):
        steps, rises = spikes.rise(method)
        if not steps:
            continue
        style = look(i)
        taken = spikes.recovery(method)
        shown = f"{taken:.0f} steps" if math.isfinite(taken) else "not"
        (line,) = axes.plot(
            steps,
            rises,
            label=f"{method.name} (recovered: {shown})",
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            markevery=4,
            linewidth=1.8,
            markersize=5,
        )
        line.set_gid(f"{style.key}--spikes")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps since the spike", ylabel="loss above that before (nats)")
    # One method may lose all that it knew, and another a tenth of a nat.
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -2.0))


def has_rates(methods: Sequence[Method]) -> bool:
    """Whether a method ended at more than one rate."""
    return any(len(counting(method.runs)) > 1 for method in methods)


def drawings(methods: Sequence[Method]) -> dict[str, tuple[str, Callable]]:
    """File name -> title and what draws the figure on axes."""
    made: dict[str, tuple[str, Callable]] = {}
    for unit, name in (("step", "steps"), ("tokens", "tokens"), ("seconds", "seconds")):

        def draw(axes: Axes, unit: str = unit) -> None:
            draw_losses(axes, methods, unit)

        made[f"loss_{name}"] = f"Loss against {name}", draw
    if has_rates(methods):
        made["rates"] = (
            "Final loss against learning rate",
            lambda axes: draw_rates(axes, methods),
        )
    made["memory"] = (
        "Final loss against optimizer state",
        lambda axes: draw_memory(axes, methods),
    )
    made["schedules"] = (
        "Learning rate against steps",
        lambda axes: draw_schedules(axes, methods),
    )
    if spikes.has_spikes(methods):
        made["spikes"] = (
            "Loss after a spike of the gradient",
            lambda axes: draw_spikes(axes, methods),
        )
    return made


def figure(*draws: Callable[[Axes], None], legend: bool = True) -> Figure:
    """A figure with a panel for each drawing, side by side, and one legend."""
    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(_WIDTH * len(draws), 4), layout="constrained")
        panels = made.subplots(1, len(draws), squeeze=False, sharey=True)[0]
        for draw, panel in zip(draws, panels, strict=True):
            draw(panel)
            panel.label_outer()
        handles, labels = panels[0].get_legend_handles_labels()
        if legend and handles:
            many = len(handles) > 4
            if many:  # beside the panels, which keep their width
                made.set_size_inches(_WIDTH * len(draws) + 2.8, 4)
            place = {"loc": "outside right upper"} if many else {"loc": "upper right"}
            (made if many else panels[-1]).legend(handles, labels, **place)
    return made


def svg(made: Figure, salt: str) -> str:
    """The figure as SVG text that is the same each time."""
    file = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": salt}):
        made.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _label(method: Method) -> str:
    lost = sum(run.diverged for run in method.tuned)
    end = ", diverged" if lost else ""
    return f"{method.name} (rate {method.rate:g}){end}"
