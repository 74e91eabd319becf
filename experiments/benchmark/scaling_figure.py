"""How a sharded step's cost grows: with devices, with width, with depth."""

from collections.abc import Callable, Sequence

import matplotlib.figure

from experiments.benchmark.catalogue import sized

# optax's Muon is not told where matrices are whole; ours costs what ROOT does.
_DRAWN = ("adamw", "optax_muon", "cosmos", "root", "lanton", "soap")
_QUANTITIES = (
    ("GFLOPs", ("GFLOPs of products", "GFLOPs of QR and eigh", "GFLOPs of elements")),
    ("MB moved", ("MB moved",)),
    ("large collectives", ("large",)),
    ("MB of state", ("MB of state",)),
    ("MB of temporaries", ("MB of temporaries",)),
)

Row = dict[str, str]


def draw(rows: Sequence[Row]) -> matplotlib.figure.Figure:
    """Small panels: a quantity of one device across, what grows downwards.

    Args:
      rows: of scaling.csv; an axis without two points is left out.
    """
    plain = [r for r in rows if ":" not in r["model"]]
    model = _most([r["model"].partition(":")[0] for r in rows])
    devices = _most([r["devices"] for r in plain if r["devices"] != "1"] or ["1"])
    sweeps: list[tuple[str, list[Row], Callable[[Row], int]]] = [
        (
            f"devices ({model})",
            [r for r in plain if r["model"] == model],
            lambda r: int(r["devices"]),
        ),
        (
            f"width ({devices} devices; 130M has half the layers)",
            [r for r in plain if r["devices"] == devices],
            lambda r: sized(r["model"]).width,
        ),
        (
            f"layers ({model}, {devices} devices)",
            [
                r
                for r in rows
                if r["model"].partition(":")[0] == model and r["devices"] == devices
            ],
            lambda r: sized(r["model"]).layers,
        ),
    ]
    sweeps = [s for s in sweeps if len({s[2](r) for r in s[1]}) > 1] or sweeps[:1]
    figure = matplotlib.figure.Figure(
        figsize=(13, 2.7 * len(sweeps) + 0.4), layout="constrained"
    )
    grid = figure.subplots(len(sweeps), len(_QUANTITIES), squeeze=False)
    for line, (label, found, place) in zip(grid, sweeps, strict=True):
        for axes, (title, columns) in zip(line, _QUANTITIES, strict=True):
            _panel(axes, found, place, columns)
            axes.set_title(f"{title}, one device", fontsize=9)
            axes.set_xlabel(label, fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
    return figure


def _panel(
    axes, rows: Sequence[Row], place: Callable[[Row], int], columns: Sequence[str]
) -> None:
    places = sorted({place(r) for r in rows})
    for i, method in enumerate(_DRAWN):
        points = sorted(
            (place(r), sum(float(r[c]) for c in columns))
            for r in rows
            if r["optimizer"] == method
        )
        style = {"color": f"C{i}", "marker": "os^vDP"[i], "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=method, linewidth=1.2, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(p) for p in places])
    axes.minorticks_off()
    heights = [y for line in axes.lines for y in line.get_ydata()]
    if min(heights) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.1, 2 * max(*heights, 1))
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _most(values: Sequence[str]) -> str:
    """The value that most rows have."""
    return max(dict.fromkeys(values), key=values.count)
