"""What a sharded optimizer step costs a device, from compiled programs; nothing runs.

Each number of devices needs a separate process, with as many virtual ones. Rows are
kept as they come, and those that the file has are not made again: a run that was killed
goes on where it was.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags

import optlab
from experiments.benchmark import scaling_figure, table
from experiments.benchmark.catalogue import sized
from experiments.benchmark.sharded_step import COLUMNS
from experiments.errors import UserError
from experiments.models.llama import SIZES
from experiments.reporting.files import read_csv, write_csv

FLAGS = flags.FlagValues()
_MODELS = flags.DEFINE_list(
    "models",
    ["130M", "350M", "1B"],
    "scaling: LLaMA sizes; 350M:48 has that many layers",
    flag_values=FLAGS,
)
_DEVICES = flags.DEFINE_list(
    "devices", ["1", "8", "64"], "scaling: numbers of devices", flag_values=FLAGS
)
OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    ["all"],
    "scaling, step, train: names of the registry, or `all`",
    flag_values=FLAGS,
)
_KEY = ("model", "devices", "optimizer")
_HEADING = """\
Made by `python -m experiments.benchmark --suite=scaling`: one optimizer step of a
LLaMA, float32, parameters cut by rows over all devices. Those of `350M:48`, the 350M
with 48 layers, and of other depths were added by the same command with
`--models=350M:6,350M:12,350M:48,350M:96 --devices=8
--optimizers=adamw,cosmos,lanton,optax_muon,root,soap`. Per device; collectives count
as often as they run, bytes are those of their results, large ones have over 4096
elements. Operations are, of each kind, those of the step that has most of them: the
first for COSMOS's SVD and SOAP's eigh, a refresh for SOAP's products. Seconds on two
shared cores; those of `muon`, and of COSMOS and SOAP on 64 devices, beside other
work."""


def asked(*others: str) -> list[str]:
    """What `--optimizers` names: of the registry or `others`; `all` is all of them."""
    known = [*optlab.registry.names(), *others]
    if OPTIMIZERS.value == ["all"]:
        return known
    check("optimizers", OPTIMIZERS.value, known)
    return OPTIMIZERS.value


def run(out: pathlib.Path) -> int:
    """Adds the rows that scaling.csv lacks, draws and prints all of them.

    Writes scaling.csv, scaling.md and scaling.png into `out`.
    """
    methods = asked()
    check("devices", _DEVICES.value, [str(2**k) for k in range(10)])
    for model in _MODELS.value:
        name, _, layers = model.partition(":")
        check("models", [name], SIZES)
        if layers and not (layers.isdigit() and int(layers)):
            raise UserError(f"--models: {model!r} is not SIZE:LAYERS")
    path = out / "scaling.csv"
    done = {tuple(row[k] for k in _KEY) for row in read(path)}
    for model in _MODELS.value:
        for devices in _DEVICES.value:
            missing = [m for m in methods if (model, devices, m) not in done]
            if missing:
                _measure(path, model, devices, missing)
    rows = sorted(read(path), key=_order)
    _write(path, rows)
    cells = [[_cell(value) for value in row.values()] for row in rows]
    table.show(out / "scaling", _HEADING, COLUMNS, cells)
    scaling_figure.draw(rows).savefig(out / "scaling.png", dpi=110)
    return 0


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a scaling.csv, none where there is no such file.

    Raises:
      UserError: the file has other columns than the rows that are made now.
    """
    if not path.exists():
        return []
    # A line that was cut off is made again.
    columns, rows = read_csv(path)
    if tuple(columns) != COLUMNS:
        raise UserError(f"{path} has other columns: move it away")
    return rows


def _write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    write_csv(path, COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


def _order(row: dict[str, str]) -> tuple[Any, ...]:
    size = sized(row["model"])
    return (size.width, size.layers, int(row["devices"]), row["optimizer"])


def check(flag: str, given: list[str], allowed: Any) -> None:
    """Refuses what a flag may not hold, in one line."""
    for value in given:
        if value not in allowed:
            raise UserError(f"--{flag}: given {value!r}, allowed {', '.join(allowed)}")


def _measure(path: pathlib.Path, model: str, devices: str, methods: list[str]) -> None:
    """Makes the rows of one model on that many virtual devices."""
    virtual = f"--xla_force_host_platform_device_count={devices}"
    command = [
        *(sys.executable, "-m", "experiments.benchmark.sharded_step"),
        *(model, devices, *methods),
    ]
    with subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            _write(path, [*read(path), json.loads(line)])
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _cell(value: str) -> str:
    """Numbers as people read them."""
    if not value.replace(".", "", 1).isdigit() or value.isdigit():
        return value
    number = float(value)
    return f"{number:.1f}" if number < 1000 else f"{number:,.0f}"
