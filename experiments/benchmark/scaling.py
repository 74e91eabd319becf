"""What a sharded optimizer step costs a device, from compiled programs; nothing runs.

Each number of devices needs a process of its own, with as many virtual ones.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import matplotlib.figure
from absl import flags
from rich.console import Console
from rich.table import Table

import optlab
from experiments import config as configs
from experiments.models.llama import SIZES

FLAGS = flags.FlagValues()
_MODELS = flags.DEFINE_list(
    "models", ["130M", "350M"], "scaling: LLaMA sizes", flag_values=FLAGS
)
_DEVICES = flags.DEFINE_list(
    "devices", ["8", "64"], "scaling: numbers of devices", flag_values=FLAGS
)
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    ["adamw", "muon", "cosmos", "root", "lanton", "soap"],
    "scaling: names of the registry, or `all`",
    flag_values=FLAGS,
)
_FIGURE = (
    ("collectives", "collectives a step"),
    ("MB moved", "MB moved a step"),
    ("GFLOPs of products", "GFLOPs of products"),
    ("MB of state", "MB of state"),
)


def run(out: pathlib.Path) -> int:
    """Writes scaling.csv, scaling.md and scaling.png into `out`, prints the table."""
    methods = _OPTIMIZERS.value
    if methods == ["all"]:
        methods = optlab.registry.names()
    _check("models", _MODELS.value, SIZES)
    _check("optimizers", methods, optlab.registry.names())
    _check("devices", _DEVICES.value, [str(2**k) for k in range(10)])
    rows = []
    for model in _MODELS.value:
        for devices in _DEVICES.value:
            rows += _measure(model, devices, methods)
    with (out / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    cells = [[_cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    (out / "scaling.md").write_text(
        f"Made by `{_command(methods)}`: one optimizer step of a\nLLaMA, float32, "
        "parameters cut by rows over all devices. Per device; collectives\ncount as "
        "often as they run, bytes are those of their results; operations are those\nof "
        "the dearest step: COSMOS's first, SOAP's refresh. Seconds on two shared "
        "cores.\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )
    _figure(rows).savefig(out / "scaling.png", dpi=110)
    table = Table(*rows[0])
    for line in cells:
        table.add_row(*line)
    Console().print(table)
    return 0


def _check(flag: str, given: list[str], allowed: Any) -> None:
    for value in given:
        if value not in allowed:
            raise configs.UserError(
                f"--{flag}: given {value!r}, allowed {', '.join(allowed)}"
            )


def _measure(model: str, devices: str, methods: list[str]) -> list[dict[str, Any]]:
    """The rows of one model on that many virtual devices."""
    virtual = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.benchmark.sharded_step"),
            *(model, devices, *methods),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _command(methods: list[str]) -> str:
    return (
        "python -m experiments.benchmark --suite=scaling\n"
        f"--models={','.join(_MODELS.value)} --devices={','.join(_DEVICES.value)} "
        f"--optimizers={','.join(methods)}"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
    return str(value)


def _figure(rows: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """Bars by optimizer, a panel a quantity and a colour a model and mesh."""
    methods = list(dict.fromkeys(row["optimizer"] for row in rows))
    groups = list(dict.fromkeys((row["model"], row["devices"]) for row in rows))
    found = {(r["model"], r["devices"], r["optimizer"]): r for r in rows}
    figure = matplotlib.figure.Figure(figsize=(10, 6.5), layout="constrained")
    width = 0.8 / len(groups)
    for place, (column, label) in enumerate(_FIGURE):
        axes = figure.add_subplot(2, 2, place + 1)
        for i, (model, devices) in enumerate(groups):
            heights = [found[model, devices, method][column] for method in methods]
            shift = (i - (len(groups) - 1) / 2) * width
            places = [x + shift for x in range(len(methods))]
            name = f"{model}, {devices} devices"
            bars = axes.bar(places, heights, width, label=name, color=f"C{i}")
            axes.bar_label(bars, [_short(h) for h in heights], fontsize=5, padding=1)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xticks(range(len(methods)), methods)
        axes.set_ylabel(f"{label}, one device")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _short(value: float) -> str:
    return f"{value:.3g}" if value else "0"
