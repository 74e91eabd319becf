"""The report as one HTML page that needs nothing else: tables, figures, some script.

A click on a column's name sorts by it, a method's box hides it in all figures. The
colours are those of the reader's light or dark scheme.
"""

import html
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting.looks import DARK, INK, LIGHT, look
from experiments.reporting.methods import Method

_TEMPLATE = pathlib.Path(__file__).parent / "page.html"
_SHAPES = {
    "o": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "s": "M-4,-4h8v8h-8z",
    "^": "M0,-5L5,4H-5z",
    "D": "M0,-5L5,0L0,5L-5,0z",
    "v": "M0,5L5,-4H-5z",
    "P": "M-1.5,-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "*": "M0,-6L1.6,-1.8L6,-1.8L2.4,1L3.8,5.4L0,2.8L-3.8,5.4L-2.4,1L-6,-1.8L-1.6,-1.8z",
    "<": "M-5,0L4,-5V5z",
    ">": "M5,0L-4,-5V5z",
    "p": "M0,-5L5,-1.5L3,4.5H-3L-5,-1.5z",
    "h": "M0,-5L4.5,-2.5V2.5L0,5L-4.5,2.5V-2.5z",
}
_DASHES = {"-": "", "--": "7 3", "-.": "7 3 2 3", ":": "2 3"}


def build(
    methods: Sequence[Mapping[str, tuple[str, Any]]],
    runs: Sequence[Mapping[str, str]],
    figures: Mapping[str, str],
    baseline: Method,
    more: Mapping[str, Sequence[Mapping[str, str]]],
) -> str:
    """The page's text.

    Args:
      methods: from `methods_table`, in the order of the figures' looks.
      runs: from `runs_table`.
      figures: title -> SVG.
      baseline: that the methods are compared with.
      more: title -> rows of a table that is folded up at the end.
    """
    loss = baseline.loss
    reached = (
        f"The baseline, {baseline.name}, ended at {loss:.4f} nats."
        if loss is not None and math.isfinite(loss)
        else f"The baseline, {baseline.name}, ended at no loss."
    )
    note = (
        f"{len(runs)} runs of {len(methods)} methods, each at its best rate. {reached} "
        "Sensitivity: the mean over the rates of the loss (at most that of the start) "
        "less the lowest, with the seeds that all of a method's rates have."
    )
    if any("tried" in text for row in methods for text, _ in row.values()):
        note += (
            " A best rate that is the lowest or the highest tried lies at the edge of "
            "its grid: there may be a better one beyond."
        )
    filled = {
        "title": "Optimizers compared",
        "note": html.escape(note),
        "light": _palette(LIGHT),
        "dark": _palette(DARK),
        "methods": _methods(methods, baseline),
        "figures": "".join(
            f"<figure{_wide(text)}><figcaption>{html.escape(title)}</figcaption>"
            f"{_themed(text, title)}</figure>"
            for title, text in figures.items()
        ),
        "count": str(len(runs)),
        "runs": _runs(runs),
        "more": "".join(
            f"<details><summary>{html.escape(title)}</summary>"
            f'<div class="wide">{_runs(found)}</div></details>'
            for title, found in more.items()
        ),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: filled[found[1]], template)


def _wide(svg: str) -> str:
    """The class of a figure with a panel for each method."""
    return ' class="panels"' if "-panel" in svg else ""


def _palette(colors: Sequence[str]) -> str:
    return " ".join(f"--c{i}: {color};" for i, color in enumerate(colors))


def _themed(svg: str, title: str) -> str:
    """The figure in the page's own colours."""
    own = {color: f"var(--c{i})" for i, color in enumerate(LIGHT)}
    own[INK] = "currentColor"
    # Of styles alone: a name of a method may hold a colour too.
    svg = re.sub(
        r"(fill|stroke): (#\w{6})", lambda x: f"{x[1]}: {own.get(x[2], x[2])}", svg
    )
    label = html.escape(title, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _swatch(index: int) -> str:
    style = look(index)
    color = f"var(--c{LIGHT.index(style.color)})"
    return (
        '<svg class="swatch" viewBox="-17 -7 34 14" aria-hidden="true">'
        f'<path d="M-17,0H17" stroke="{color}" stroke-width="2" '
        f'stroke-dasharray="{_DASHES[style.linestyle]}"/>'
        f'<path d="{_SHAPES[style.marker]}" fill="{color}"/></svg>'
    )


def _head(names: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>'
        for name in names
    )
    return f"<thead><tr>{cells}</tr></thead>"


def _cell(text: str, value: Any) -> str:
    shown = "" if value is None else html.escape(str(value), quote=True)
    marked = ' class="marked"' if re.search("diverged|tried", text) else ""
    return f'<td data-value="{shown}"{marked}>{html.escape(text)}</td>'


def _methods(rows: Sequence[Mapping[str, tuple[str, Any]]], baseline: Method) -> str:
    lines = []
    for i, row in enumerate(rows):
        (name, value), *cells = row.values()
        bold = ' class="baseline"' if name == baseline.name else ""
        first = (
            f'<td data-value="{html.escape(str(value), quote=True)}"{bold}><label>'
            f'<input type="checkbox" checked data-method="{look(i).key}">'
            f"{_swatch(i)}{html.escape(name)}</label></td>"
        )
        lines.append(f"<tr>{first}{''.join(_cell(*cell) for cell in cells)}</tr>")
    return f"<table>{_head(list(rows[0]))}<tbody>{''.join(lines)}</tbody></table>"


def _runs(rows: Sequence[Mapping[str, str]]) -> str:
    lines = []
    for row in rows:
        # "-" is unknown; commas are for reading.
        cells = [
            _cell(text, None if text == "-" else text.replace(",", ""))
            for text in row.values()
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{_head(list(rows[0]))}<tbody>{''.join(lines)}</tbody></table>"
