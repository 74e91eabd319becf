"""Measures the optimizers: one suite, its table on the screen and files in a folder.

    python -m experiments.benchmark --suite=scaling --out=results/benchmarks

A suite `S` writes `S.csv`, `S.md` and, where there is something to see, `S.png`.
"""

import importlib
import pathlib

from absl import flags

from experiments import command
from experiments.benchmark import peers
from experiments.errors import UserError

# Name -> module with `run(out)`, which gets the folder and returns the exit status.
SUITES = {
    "catalogue": "experiments.benchmark.catalogue",
    "cost": "experiments.benchmark.cost",
    "diagnostics": "experiments.benchmark.diagnostics",
    "dual_norm": "experiments.benchmark.dual_norm",
    "gradients": "experiments.benchmark.gradients",
    "loader": "experiments.benchmark.loader",
    "memory": "experiments.benchmark.memory",
    "orthogonalize": "experiments.benchmark.orthogonalize",
    "precision": "experiments.benchmark.precision",
    "scaling": "experiments.benchmark.scaling",
    "step": "experiments.benchmark.step",
    "train": "experiments.benchmark.train",
}
MODULES = {name: importlib.import_module(path) for name, path in SUITES.items()}

_FLAGS = flags.FlagValues()
_SUITE = flags.DEFINE_string(
    "suite", None, f"what to measure: {', '.join(SUITES)}", flag_values=_FLAGS
)
_OUT = command.define_path(
    "out", "folder, made if missing", _FLAGS, default="results/benchmarks"
)
for module in MODULES.values():
    if hasattr(module, "FLAGS"):
        _FLAGS.append_flag_values(module.FLAGS)
        # They share the values, and not that these were parsed.
        module.FLAGS.mark_as_parsed()


def main(positional: list[str], overrides: list[str]) -> int:
    """Runs the suite."""
    command.no_arguments(positional, overrides)
    command.require(suite=_SUITE.value)
    if _SUITE.value not in SUITES:
        raise UserError(f"--suite: given {_SUITE.value!r}, allowed {', '.join(SUITES)}")
    peers.register()
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    return MODULES[_SUITE.value].run(out)


if __name__ == "__main__":
    command.run(main, _FLAGS)
