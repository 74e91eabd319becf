"""The figures, each drawn on given axes; notebooks call them too.

More than six methods are drawn apart: a panel each, with the others behind it in grey.
"""

import functools
import io
import itertools
import math
import statistics
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.reporting import escape, spikes
from experiments.reporting.curves import curve
from experiments.reporting.looks import INK, Pen, look
from experiments.reporting.methods import Method, counting, known_logits

_UNITS = {
    "step": "steps",
    "tokens": "tokens",
    "seconds": "seconds of training, without compiling and evaluating",
}
_WIDTH = 5.5  # of a panel, in inches
_SMALL = (2.3, 1.9)  # of a panel of one method among many
_TOGETHER = 6  # methods that one panel can hold
_LOSS = "validation loss (nats)"
_FAR = 3  # From this many times most losses' range on, a loss is far above.
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
_SMALL_STYLE = {
    "axes.titlesize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


class Drawing(NamedTuple):
    """What draws a figure on axes: `draw(axes)`, or `draw(axes, focus=i)`.

    `apart` says that many methods need a panel each.
    """

    title: str
    draw: Callable[..., None]
    apart: bool = True


def draw_losses(
    axes: Axes,
    methods: Sequence[Method],
    unit: str = "step",
    field: str = "val_loss",
    focus: int | None = None,
) -> None:
    """A loss at the tuned rates, mean and range over the seeds.

    Args:
      axes: to draw on.
      methods: from `compare`.
      unit: `step`, `tokens` or `seconds`.
      field: `val_loss`, or `loss` for the training loss.
      focus: the place of the one method to draw before the others; None: all alike.
    """
    curves = _draw_curves(axes, methods, unit, field, focus)
    tops = []
    for method, means in zip(methods, curves, strict=True):
        starts = [run.initial_loss for run in method.tuned]
        known = [start for start in starts if start is not None]
        tops.append(min([*known, max(means, default=0.0)]))
    if max(tops, default=0) > 0:
        axes.set_ylim(top=max(tops) * 1.02)
    axes.set(ylabel=_LOSS if field == "val_loss" else "training loss (nats)")


def draw_accuracy(
    axes: Axes, methods: Sequence[Method], focus: int | None = None
) -> None:
    """Validation accuracy at the tuned rates, mean and range over the seeds."""
    _draw_curves(axes, methods, "step", "val_accuracy", focus)
    axes.set(ylabel="validation accuracy (share of 1)")


def _draw_curves(
    axes: Axes, methods: Sequence[Method], unit: str, field: str, focus: int | None
) -> list[list[float]]:
    """Draws a field's means and ranges, and returns the means of each method."""
    means = []
    for i, method in enumerate(methods):
        pen = Pen(axes, i, focus)
        x, mean, low, high = curve(method.tuned, unit, field)
        every = max(len(x) // 8, 1)
        pen.line(f"{unit}-line", x, mean, _label(method), markevery=every)
        if len(method.tuned) > 1 and x:
            pen.band(f"{unit}-band", x, low, high)
        if any(run.diverged for run in method.tuned) and x:
            style = {"marker": "x", "markersize": 10, "markeredgewidth": 2}
            pen.points(f"{unit}-end", x[-1:], mean[-1:], **style)
        means.append(mean)
    axes.set(xlabel=_UNITS[unit])
    if unit == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return means


def draw_rates(axes: Axes, methods: Sequence[Method], focus: int | None = None) -> None:
    """Final loss against the learning rate: a point a run; diverged runs at the top.

    Lines are means over the seeds that all of a method's rates have, by which the best
    is found, with a gap at a rate where such a run is lost. A loss above that of the
    start, or far above most others, is drawn as a diverged one, a cross. A best rate at
    the edge of its grid stands in a triangle that points beyond it.
    """
    runs = [run for method in methods for run in method.runs]
    starts = [run.initial_loss for run in runs if run.initial_loss is not None]
    ended = [run.loss for run in runs if run.loss is not None]
    losses = [loss for loss in ended if math.isfinite(loss)]
    low = min(losses, default=0.0)
    worst = max(losses, default=1.0)
    # The room above the worst loss is where lost runs stand.
    bounds = [worst, *([max(starts)] if starts else [])]
    if len(losses) > 3:  # Three of four are below `most`.
        most = sorted(losses)[3 * len(losses) // 4]
        bounds.append(low + _FAR * max(most - low, 0.1))
    high = min(bounds)
    top = high + 0.06 * max(high - low, 0.1)
    for i, method in enumerate(methods):
        pen = Pen(axes, i, focus)
        means = {
            rate: statistics.fmean(run.loss for run in found)
            if all(run.loss <= high for run in found)
            else math.nan
            for rate, found in sorted(counting(method.runs).items())
        }
        kept = [run for run in method.runs if run.loss is not None and run.loss <= high]
        lost = [run.rate for run in method.runs if (run.loss or 0) > high]
        rates, values = list(means), list(means.values())
        pen.line("rates-line", rates, values, _rates_label(method), markersize=6)
        x, y = [run.rate for run in kept], [run.loss for run in kept]
        pen.points("rates-runs", x, y, markersize=3)
        style = {"marker": "x", "markersize": 9, "markeredgewidth": 2, "clip_on": False}
        pen.points("rates-lost", lost, [top] * len(lost), **style)
        if method.edge:
            at = means[method.rate]
            marker = "<" if method.edge == "lowest" else ">"
            style = {"marker": marker, "markersize": 17, "fillstyle": "none"}
            at = top if math.isnan(at) else at
            pen.points("rates-edge", [method.rate], [at], **style)
    _show_rates(axes, [run.rate for run in runs], focus)
    axes.set_ylim(top=top + 0.04 * max(high - low, 0.1))
    edge = "; triangle: best at the edge" if any(m.edge for m in methods) else ""
    axes.set(xlabel=f"peak learning rate (cross: above{edge})")
    axes.set(ylabel="final " + _LOSS)


def draw_logits(
    axes: Axes, methods: Sequence[Method], field: str, focus: int | None = None
) -> None:
    """The largest logit of each run against the learning rate.

    Args:
      axes: to draw on.
      methods: from `compare`.
      field: of `thinning.LOGITS`.
      focus: the place of the one method to draw before the others; None: all alike.
    """
    for i, method in enumerate(methods):
        found = [(run.rate, run.largest(field)) for run in method.runs]
        known = sorted((rate, value) for rate, value in found if value is not None)
        pen = Pen(axes, i, focus)
        pen.line(field, [x for x, _ in known], [y for _, y in known], method.name)
    _show_rates(axes, [run.rate for method in methods for run in method.runs], focus)
    axes.set(xlabel="peak learning rate", ylabel=field.replace("_", " "), yscale="log")


def _show_rates(axes: Axes, rates: Sequence[float], focus: int | None) -> None:
    """A logarithmic axis, the rates its ticks where the panel has room for them."""
    axes.set_xscale("log")
    ticks = sorted(set(rates))
    apart = all(b > 1.5 * a for a, b in itertools.pairwise(ticks))
    if focus is None and len(ticks) < 9 and apart:
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.minorticks_off()


def draw_memory(axes: Axes, methods: Sequence[Method]) -> None:
    """Final loss at the tuned rate against the bytes of the optimizer's state."""
    for i, method in enumerate(methods):
        if method.loss is None or not math.isfinite(method.loss):
            continue
        megabytes = [(method.state_bytes or 0) / 1e6]
        style = {"linestyle": "none", "markersize": 9}
        Pen(axes, i, None).line(
            "memory", megabytes, [method.loss], method.name, **style
        )
    axes.set(xlabel="optimizer state (MB)", ylabel="final " + _LOSS)


def draw_schedules(
    axes: Axes, methods: Sequence[Method], focus: int | None = None
) -> None:
    """The learning rate at each step, as a share of its peak."""
    for i, method in enumerate(methods):
        run = method.tuned[0]
        known = [r for r in run.records if "learning_rate" in r]
        x = [record["step"] for record in known]
        y = [record["learning_rate"] / run.rate for record in known]
        # Many have the same one: each marker at other places.
        every = (i / 8 / len(methods), 1 / 8)
        style = {"markevery": every, "linewidth": 1.5}
        Pen(axes, i, focus).line("schedule", x, y, method.name, **style)
    axes.set(xlabel="steps", ylabel="learning rate / peak")


def draw_spikes(
    axes: Axes, methods: Sequence[Method], focus: int | None = None
) -> None:
    """Training loss after injected spikes, above that before, median over spikes."""
    for i, method in enumerate(methods):
        steps, rises = spikes.rise(method)
        if not steps:
            continue
        taken = spikes.recovery(method)
        shown = f"{taken:.0f} steps" if math.isfinite(taken) else "not"
        text = f"{method.name} (recovered: {shown})"
        Pen(axes, i, focus).line("spikes", steps, rises, text, markevery=4)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps since the spike", ylabel="loss above that before (nats)")
    # One method may lose all that it knew, and another a tenth of a nat.
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -2.0))


def has_rates(methods: Sequence[Method]) -> bool:
    """Whether a method ended at more than one rate."""
    return any(len(counting(method.runs)) > 1 for method in methods)


def drawings(methods: Sequence[Method]) -> dict[str, Drawing]:
    """File name -> what draws the figure."""

    def losses(unit: str, field: str = "val_loss") -> Callable[..., None]:
        return functools.partial(draw_losses, methods=methods, unit=unit, field=field)

    def of_all(draw: Callable[..., None]) -> Callable[..., None]:
        return functools.partial(draw, methods=methods)

    made = {
        "loss_steps": Drawing("Loss against steps", losses("step")),
        "loss_tokens": Drawing("Loss against tokens", losses("tokens")),
        "loss_seconds": Drawing("Loss against seconds", losses("seconds")),
    }
    if any(method.train_loss is not None for method in methods):
        title = "Training loss against steps"
        made["training_loss"] = Drawing(title, losses("step", "loss"))
    if any(method.accuracy is not None for method in methods):
        made["accuracy"] = Drawing("Accuracy against steps", of_all(draw_accuracy))
    if has_rates(methods):
        title = "Final loss against learning rate"
        made["rates"] = Drawing(title, of_all(draw_rates))
    for name in known_logits(methods):
        title = f"{name.replace('_', ' ').capitalize()} against learning rate"
        draw = functools.partial(draw_logits, methods=methods, field=name)
        made[name] = Drawing(title, draw)
    title = "Final loss against optimizer state"
    made["memory"] = Drawing(title, of_all(draw_memory), apart=False)
    title = "Learning rate against steps"
    made["schedules"] = Drawing(title, of_all(draw_schedules))
    if spikes.has_spikes(methods):
        title = "Loss after a spike of the gradient"
        made["spikes"] = Drawing(title, of_all(draw_spikes))
    return made


def draw_all(made: Sequence[Drawing], methods: Sequence[Method]) -> Figure:
    """A figure with a part for each drawing, and what tells the methods apart."""
    draws = [drawing.draw for drawing in made]
    if len(methods) > _TOGETHER and all(drawing.apart for drawing in made):
        return _panels(draws, methods)
    return figure(*draws)


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
            texts = [_entry(text, 56) for text in labels]
            many = len(handles) > 4
            if many:  # beside the panels, which keep their width
                lines = sum(text.count("\n") + 1 for text in texts)
                height = max(4, 0.19 * lines + 0.3)
                made.set_size_inches(_WIDTH * len(draws) + 2.8, height)
            place = "outside right upper" if many else "best"
            (made if many else panels[-1]).legend(handles, texts, loc=place)
    return made


def _panels(draws: Sequence[Callable[..., None]], methods: Sequence[Method]) -> Figure:
    """A panel for each method under each drawing; the title is what a legend says."""
    columns = min(math.ceil(math.sqrt(1.6 * len(methods))), 6)
    rows = math.ceil(len(methods) / columns)
    size = (_SMALL[0] * columns, _SMALL[1] * rows * len(draws))
    with mpl.rc_context(_STYLE | _SMALL_STYLE):
        made = Figure(figsize=size, layout="constrained")
        parts = made.subfigures(len(draws), 1, squeeze=False)[:, 0]
        for draw, part in zip(draws, parts, strict=True):
            grid = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
            panels = list(grid.flat)
            for i, method in enumerate(methods):
                panel = panels[i]
                draw(panel, focus=i)
                shown = panel.get_legend_handles_labels()[1]
                shown = shown or [escape.label(method.name)]
                panel.set_title(_entry(shown[0], 36, apart=True))
                panel.set_gid(f"{look(i).key}--{part}-panel")
                if i + columns >= len(methods):
                    panel.xaxis.set_tick_params(labelbottom=True)
            part.supxlabel(panels[0].get_xlabel(), fontsize="medium")
            part.supylabel(panels[0].get_ylabel(), fontsize="medium")
            for panel in panels:
                panel.set(xlabel="", ylabel="")
            for panel in panels[len(methods) :]:
                panel.remove()
    return made


def _entry(label: str, width: int, *, apart: bool = False) -> str:
    """A method's label on lines of so many letters, the numbers apart if need be."""
    text = escape.label_text(label)
    name, _, numbers = text.rpartition(" (")
    apart = bool(name) and (apart or len(text) > width)
    lines = [
        line
        for part in ([name, f"({numbers}"] if apart else [text])
        for line in textwrap.wrap(part, width, max_lines=2, placeholder=" ...")
    ]
    return "\n".join(map(escape.label, lines))


def has_legend(made: Figure) -> bool:
    """Whether it has one, which a page with a table of methods does not need."""
    return bool(made.legends) or any(axes.get_legend() for axes in made.axes)


def save(made: Figure, file: Any, **how: Any) -> None:
    """Writes a figure; letters that the font lacks are boxes in a PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        made.savefig(file, **how)


def svg(made: Figure, salt: str) -> str:
    """The figure as SVG text that is the same each time."""
    file = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": salt}):
        save(made, file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _label(method: Method) -> str:
    lost = sum(run.diverged for run in method.tuned)
    end = ", diverged" if lost else ""
    return f"{method.name} (rate {method.rate:g}{end})"


def _rates_label(method: Method) -> str:
    number, edge = method.sensitivity, method.edge
    known = [
        *([f"best {method.rate:g}, {edge} tried"] if edge else []),
        *([] if number is None else [f"sensitivity {number:.3f}"]),
    ]
    return method.name + (f" ({'; '.join(known)})" if known else "")
