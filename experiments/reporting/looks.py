"""How each method looks in all figures: colour, dashes, marker.

Seven colours for white paper and seven of the same hues for a dark page: any two of a
scheme are 25 apart in CIELAB (dE 1976), also as simulated for full protanopia,
deuteranopia and tritanopia (Machado et al., doi 10.1109/TVCG.2009.113), each has a
contrast of 3:1 with its paper, and neighbours differ by 12 in lightness. No two of the
first 44 methods have the same dashes and marker, so that print without colour will do.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from experiments.reporting import escape

INK = "#1b1f24"
# Found by annealing from hues of Okabe and Ito's for the distances named above.
LIGHT = ("#341976", "#b73c07", "#024f2d", "#c55b83", "#582251", "#0376bc", "#af8d5c")
DARK = ("#3878f6", "#f5a139", "#b0e4c4", "#e6599f", "#a63aa8", "#2ad7ff", "#ba9d73")
# 7, 4 and 11 have no common divisor: places alike in one differ in the others.
_DASHES = ("-", "--", "-.", ":")
MARKERS = "os^DvP*<>ph"


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


class Pen:
    """Draws the parts of one method: in its look, or in grey behind that in focus."""

    def __init__(self, axes: Axes, index: int, focus: int | None):
        self.look = look(index)
        self.behind = focus not in (None, index)
        self._axes = axes
        self._panel = "" if focus is None else f"-of{focus}"

    def line(self, part: str, x: Sequence, y: Sequence, text: str = "", **own) -> None:
        """Draws a line, with a marker at some of its points."""
        style: dict[str, Any] = {
            "color": self.look.color,
            "linestyle": self.look.linestyle,
            "marker": self.look.marker,
            "linewidth": 1.8,
            "markersize": 5,
            "label": escape.label(text) if text else None,
        } | own
        if self.behind:
            style |= {"color": INK, "alpha": 0.16, "linewidth": 1, "zorder": 1}
            style |= {"linestyle": "-", "marker": "", "label": None}
        (line,) = self._axes.plot(x, y, **style)
        line.set_gid(self._id(part))

    def points(self, part: str, x: Sequence, y: Sequence, **own) -> None:
        """Draws points without a line, which are left out behind another method."""
        if len(x) and not self.behind:  # a layout makes room for an empty line at 0, 0
            self.line(part, x, y, **{"linestyle": "none"} | own)

    def band(self, part: str, x: Sequence, low: Sequence, high: Sequence) -> None:
        """Draws a range, which is left out behind another method."""
        if not self.behind:
            style = {"color": self.look.color, "alpha": 0.15, "linewidth": 0}
            self._axes.fill_between(x, low, high, **style).set_gid(self._id(part))

    def _id(self, part: str) -> str:
        return f"{self.look.key}--{part}{self._panel}"
