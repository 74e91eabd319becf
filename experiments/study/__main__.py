"""Runs what the claims of papers still need, and says which of them hold here.

    python -m experiments.study --plan
    python -m experiments.study --workers=2 --minutes=120
    python -m experiments.study cosmos soap_interval --workers=2
    python -m experiments.study --report

Without names it is all claims, those of the greatest worth first. Every run that ends
is a line of `results/study/runs.csv`, and what that table has is not run again: commit
it, and any machine goes on from there. `--report` makes the page, tables and figures in
`results/study/`, and headline and table of methods in README.md and docs/, all of it.

Exit status: 0 the time was up or no run is missing, 1 some runs failed, 2 bad input,
129, 130 and 143 stopped by a signal.
"""

import pathlib

from absl import flags

from experiments import command
from experiments.errors import UserError
from experiments.reporting.files import markdown
from experiments.study import claims, plan, report, table, work

_FLAGS = flags.FlagValues()
_PLAN = flags.DEFINE_bool(
    "plan", False, "print how many runs each claim needs, and stop", flag_values=_FLAGS
)
_REPORT = flags.DEFINE_bool(
    "report", False, "write pages, tables and figures, and stop", flag_values=_FLAGS
)
_WORKERS = flags.DEFINE_integer(
    "workers", 2, "runs at once", lower_bound=1, flag_values=_FLAGS
)
_MINUTES = flags.DEFINE_float(
    "minutes",
    0.0,
    "of work, after which it stops; a run that is cut off goes on the next time; 0: "
    "until all is done",
    lower_bound=0.0,
    flag_values=_FLAGS,
)
_RUNS = command.define_path(
    "runs", "the table of runs", _FLAGS, default="results/study/runs.csv"
)
_WORKDIR = command.define_path(
    "workdir", "folder where runs are made", _FLAGS, default="runs/study"
)


def _plan(chosen: list[claims.Claim], runs: pathlib.Path) -> None:
    sizes = plan.sizes(chosen, table.by_key(table.read(runs)))
    total = plan.Size(
        "all",
        sum(size.arms for size in sizes),
        len(table.read(runs)),
        sum(size.left for size in sizes),
        sum(size.hours for size in sizes),
    )
    rows = [
        [
            size.claim,
            str(size.arms),
            str(size.made),
            str(size.left),
            f"{size.hours:.1f}",
        ]
        for size in (*sizes, total)
    ]
    print(markdown(["claim", "arms", "runs", "left", "core hours left"], rows), end="")


def _check(positional: list[str], runs: pathlib.Path) -> None:
    """Raises a `UserError` for what would be ignored, or taken for no runs."""
    if _PLAN.value and _REPORT.value:
        raise UserError("--plan: not with --report")
    if _REPORT.value and positional:
        raise UserError(f"{positional[0]!r}: --report is of all claims, allowed none")
    reads = _PLAN.value or _REPORT.value
    if reads and _RUNS.present and not runs.is_file():
        raise UserError(f"--runs: no file {str(runs)!r}")


def main(positional: list[str], overrides: list[str]) -> int:
    """Runs, plans or reports, and returns the exit status."""
    command.no_arguments((), overrides)
    chosen = claims.load(positional)
    runs = pathlib.Path(_RUNS.value)
    _check(positional, runs)
    if _PLAN.value:
        _plan(chosen, runs)
        return 0
    if _REPORT.value:
        report.write(claims.load(), table.read(runs), pathlib.Path())
        return 0
    study = work.Study(chosen, runs, pathlib.Path(_WORKDIR.value), _WORKERS.value)
    return study.run(_MINUTES.value)


if __name__ == "__main__":
    command.run(main, _FLAGS)
