"""What was seen inside runs: figures and tables of their `look.jsonl`, where it is."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments import looked
from experiments.reporting import escape
from experiments.reporting.figures import Drawing
from experiments.reporting.looks import INK, Pen
from experiments.reporting.methods import Method
from experiments.reporting.runs import Run
from experiments.reporting.thinning import number

Looks = dict[str, list[dict[str, Any]]]


class _Series(NamedTuple):
    """A number against the steps: of which measure, and how it is shown."""

    what: str
    field: str
    title: str
    label: str
    scale: str = "linear"
    line: float | None = None


_SERIES = {
    "look_sharpness": _Series(
        *("sharpness", "sharpness", "Sharpness against steps"),
        *("largest eigenvalue of the Hessian", "symlog"),
    ),
    "look_edge": _Series(
        *("sharpness", "of_bound", "Sharpness against the edge of stability"),
        *("preconditioned sharpness / bound", "symlog", 1.0),
    ),
    "look_coherence": _Series(
        *("coherence", "m_alpha", "Coherence of the gradients of examples"),
        *("examples that one gradient helps", "log", 1.0),
    ),
    "look_noise": _Series(
        *("noise", "noise_scale", "Noise scale against steps"),
        *("simple noise scale (examples)", "log"),
    ),
    "look_opposing": _Series(
        *("opposing", "cosine", "Cosine of opposing groups"),
        *("cosine of their gradients", "linear", 0.0),
    ),
    "look_distance": _Series(
        *("distance", "relative_distance", "Distance from the initial weights"),
        *("distance / norm of the initial weights", "linear"),
    ),
}
# A column of the table: of which measure, which number, in which form.
_COLUMNS = {
    "sharpness": ("sharpness", "sharpness", ".4g"),
    "sharpness / bound": ("sharpness", "of_bound", ".3f"),
    "smallest eigenvalue": ("spectrum", "smallest", ".4g"),
    "m alpha": ("coherence", "m_alpha", ".2f"),
    "noise scale": ("noise", "noise_scale", ".4g"),
    "opposing cosine": ("opposing", "cosine", ".3f"),
    "distance": ("distance", "distance", ".4g"),
    "relative distance": ("distance", "relative_distance", ".3f"),
}
_SHOWN = 80  # letters of an example


def read(runs: Sequence[Run]) -> Looks:
    """The records of each run that was looked at, by its folder."""
    found = {str(run.folder): looked.read(run.folder) for run in runs}
    return {folder: records for folder, records in found.items() if records}


def drawings(methods: Sequence[Method], looks: Looks) -> dict[str, Drawing]:
    """File name -> what draws the figure, of what was measured of a tuned run."""
    made = {}
    for name, series in _SERIES.items():
        if any(_points(method, looks, series) for method in methods):
            draw = functools.partial(
                _draw_series, methods=methods, looks=looks, series=series
            )
            made[name] = Drawing(series.title, draw)
    if any(_spectrum(method, looks) for method in methods):
        draw: Callable[..., None] = functools.partial(
            _draw_spectra, methods=methods, looks=looks
        )
        made["look_spectrum"] = Drawing("Spectrum of the Hessian at the end", draw)
    if any(_barriers(method, looks) for method in methods):
        draw = functools.partial(_draw_barriers, methods=methods, looks=looks)
        made["look_barrier"] = Drawing("Loss on the line between two runs", draw)
    if any(_images(method, looks) for method in methods):
        draw = functools.partial(_draw_images, methods=methods, looks=looks)
        title = "Images whose loss rose (left) and fell most in a step"
        made["look_images"] = Drawing(title, draw, apart=False)
    return made


def _images(method: Method, looks: Looks) -> dict[str, list[np.ndarray]]:
    """Group -> its images, of the first tuned run that has any."""
    for run in method.tuned:
        if (record := _opposing(run, looks)) is None:
            continue
        found = {
            name: [y for x in _examples(record, name) if (y := _image(x)) is not None]
            for name in ("rose", "fell")
        }
        if any(found.values()):
            return found
    return {}


def _image(example: Any) -> np.ndarray | None:
    """Its pixels between 0 and 1, `(height, width, 1 or 3)`."""
    try:
        pixels = np.asarray(example["pixels"], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        return None
    return pixels / max(pixels.max(), 1.0)


def _draw_images(axes: Axes, methods: Sequence[Method], looks: Looks) -> None:
    """A row for each method: images that its next step hurt, and those it helped."""
    rows = [(x.name, found) for x in methods if (found := _images(x, looks))]
    most = max(len(group) for _, found in rows for group in found.values())
    for i, (_, found) in enumerate(rows):
        for start, group in ((0, found["rose"]), (most + 0.5, found["fell"])):
            for j, image in enumerate(group):
                left = start + j
                axes.imshow(
                    image[..., 0] if image.shape[-1] == 1 else image,
                    cmap="gray",
                    vmin=0,
                    vmax=1,
                    extent=(left + 0.05, left + 0.95, i + 0.95, i + 0.05),
                )
    axes.set_xlim(0, 2 * most + 0.5)
    axes.set_ylim(len(rows), 0)
    names = [escape.label(name) for name, _ in rows]
    axes.set_yticks([i + 0.5 for i in range(len(rows))], names)
    axes.set_xticks([most / 2, most * 1.5 + 0.5], ["rose", "fell"])
    axes.set_aspect("equal")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _barriers(method: Method, looks: Looks) -> list[dict[str, Any]]:
    """The lines that begin at a tuned run."""
    return [
        record
        for run in method.tuned
        for record in looks.get(str(run.folder), ())
        if record["what"].startswith("barrier to ")
        and _is_numbers(record.get("losses"))
    ]


def _draw_barriers(
    axes: Axes, methods: Sequence[Method], looks: Looks, focus: int | None = None
) -> None:
    """The loss along the lines from each method's tuned runs to others."""
    for i, method in enumerate(methods):
        for record in _barriers(method, looks):
            losses = record["losses"]
            t = [j / (len(losses) - 1) for j in range(len(losses))]
            text = f"{method.name} {record['what'].removeprefix('barrier ')}"
            Pen(axes, i, focus).line("barrier", t, losses, text, markevery=5)
    axes.set(xlabel="share of the way", ylabel="training loss (nats)")


def _points(method: Method, looks: Looks, series: _Series) -> list[tuple[int, float]]:
    """Step and number of the first tuned run that has any."""
    for run in method.tuned:
        found = [
            (record["step"], value)
            for record in looks.get(str(run.folder), ())
            if record["what"] == series.what
            and (value := number(record.get(series.field))) is not None
            and (series.scale != "log" or value > 0)
        ]
        if found:
            return found
    return []


def _draw_series(
    axes: Axes,
    methods: Sequence[Method],
    looks: Looks,
    series: _Series,
    focus: int | None = None,
) -> None:
    """A number at the checkpoints of each method's first tuned run."""
    first = last = None
    for i, method in enumerate(methods):
        points = _points(method, looks, series)
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        text = f"{method.name} (rate {method.rate:g})"
        Pen(axes, i, focus).line(series.field, steps, values, text)
        first = min(steps[0], first or steps[0])
        last = max(steps[-1], last or 0)
    if series.line is not None:
        axes.axhline(series.line, color=INK, linewidth=0.8, linestyle=":")
    if series.what == "distance" and first and last > first:
        axes.set_xscale("log")  # growth by log t is a straight line here
    if series.scale == "symlog":
        axes.set_yscale("symlog", linthresh=1.0)
    else:
        axes.set_yscale(series.scale)
    axes.set(xlabel="steps", ylabel=series.label)


def _spectrum(method: Method, looks: Looks) -> dict[str, Any] | None:
    """The last one of the first tuned run that has any, whole."""
    for run in method.tuned:
        for record in reversed(looks.get(str(run.folder), ())):
            parts = [record.get(name) for name in ("grid", "density")]
            if record["what"] == "spectrum" and all(map(_is_numbers, parts)):
                return record
    return None


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(number(x) is not None for x in values)


def _draw_spectra(
    axes: Axes, methods: Sequence[Method], looks: Looks, focus: int | None = None
) -> None:
    """The density of eigenvalues at the last checkpoint of each method."""
    highest = 0.0
    for i, method in enumerate(methods):
        record = _spectrum(method, looks)
        if record is None:
            continue
        text = f"{method.name} (step {record['step']})"
        every = max(len(record["grid"]) // 8, 1)
        pen = Pen(axes, i, focus)
        pen.line("spectrum", record["grid"], record["density"], text, markevery=every)
        highest = max([highest, *record["density"]])
    axes.set_yscale("log")
    axes.set_ylim(highest * 1e-6, highest * 3)
    # One method's sharpness may be a hundred times another's.
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density")


def table(runs: Sequence[Run], looks: Looks) -> list[dict[str, str]]:
    """One row a checkpoint that was looked at, as text."""
    rows = []
    for run in runs:
        records = looks.get(str(run.folder), [])
        for step in sorted({record["step"] for record in records}):
            here = {x["what"]: x for x in records if x["step"] == step}
            values = {
                title: _text(here.get(what, {}).get(field), form)
                for title, (what, field, form) in _COLUMNS.items()
            }
            row = {"optimizer, schedule": run.name, "rate": f"{run.rate:g}"}
            rows.append(row | {"seed": str(run.seed), "step": str(step)} | values)
    return rows


def _opposing(run: Run, looks: Looks) -> dict[str, Any] | None:
    """Of the steps of a run that were looked at, the one that moved losses most.

    The last one has a rate of almost 0 in many schedules, and moves nothing.
    """
    best, most = None, 0.0
    for record in looks.get(str(run.folder), ()):
        if record["what"] != "opposing":
            continue
        moved = [number(x.get("change")) for x in _examples(record)]
        largest = max((abs(x) for x in moved if x is not None), default=0.0)
        if best is None or largest >= most:
            best, most = record, largest
    return best


def _examples(record: dict[str, Any], *groups: str) -> list[dict[str, Any]]:
    lists = [record.get(group) for group in groups or ("rose", "fell")]
    whole = [found for found in lists if isinstance(found, list)]
    return [x for found in whole for x in found if isinstance(x, dict)]


def opposing_table(runs: Sequence[Run], looks: Looks) -> list[dict[str, str]]:
    """One row an example that rose or fell most in the step that moved losses most."""
    rows = []
    for run in runs:
        record = _opposing(run, looks)
        if record is None:
            continue
        for group in ("rose", "fell"):
            for example in _examples(record, group):
                shown = " ".join(str(example.get("shown", "")).split())
                rows.append(
                    {
                        "optimizer, schedule": run.name,
                        "step": str(record["step"]),
                        "loss": group,
                        "by (nats)": _text(example.get("change"), "+.4f"),
                        "example": str(example.get("example", "-")),
                        "shown": shown[:_SHOWN],
                    }
                )
    return rows


def _text(value: Any, form: str) -> str:
    found = number(value)
    return "-" if found is None or not math.isfinite(found) else format(found, form)


def barrier_table(runs: Sequence[Run], looks: Looks) -> list[dict[str, str]]:
    """One row a line between two runs, with the layer that has the highest barrier."""
    rows = []
    for run in runs:
        for record in looks.get(str(run.folder), ()):
            if not record["what"].startswith("barrier to "):
                continue
            layers = record.get("layer_barrier")
            known = {
                name: value
                for name, value in (layers if isinstance(layers, dict) else {}).items()
                if number(value) is not None
            }
            highest = max(known, key=lambda name: known[name], default="-")
            rows.append(
                {
                    "from": f"{run.folder.name} step {record['step']}",
                    "to": record["what"].removeprefix("barrier to "),
                    "barrier (nats)": _text(record.get("barrier"), ".4f"),
                    "highest layer": highest,
                    "its barrier": _text(known.get(highest), ".4f"),
                }
            )
    return rows
