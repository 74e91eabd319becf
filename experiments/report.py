"""Compares runs: reads their folders, writes tables, figures and a page.

    python -m experiments.report runs/a runs/b

Every folder with a `metrics.jsonl` at or below the ones named is a run; runs that
differ in rate and seed only are one method, shown at its best rate. `report/` is made
in the first folder named: `results.md` (a row a method), `results.csv` (a row a run),
figures as PNG and SVG, and `index.html`, which holds everything and opens offline.
Of runs that `experiments.look` has looked at there are figures too, and `looks.md`.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import command
from experiments.errors import UserError
from experiments.reporting import figures, groups, inside, page
from experiments.reporting.files import markdown, split, write_csv
from experiments.reporting.methods import compare
from experiments.reporting.runs import Run, load_runs
from experiments.reporting.tables import csv_rows, methods_table
from experiments.reporting.tables import runs_table as table

_FLAGS = flags.FlagValues()
_OUTPUT = command.define_path("output", "folder to write, instead of report/", _FLAGS)
_BASELINE = flags.DEFINE_string(
    "baseline",
    None,
    "optimizer or method to compare with, instead of adamw",
    flag_values=_FLAGS,
)
_TUNED = flags.DEFINE_list(
    "tuned",
    [],
    "more fields than the rate that were tuned, such as optimizer.weight_decay: they "
    "make no other method, and each seed is a separate study (AlgoPerf's protocol)",
    flag_values=_FLAGS,
)


def write_report(
    runs: Sequence[Run],
    folder: pathlib.Path,
    baseline: str | None = None,
    *,
    studies: bool = False,
) -> pathlib.Path:
    """Writes all files of the report.

    Args:
      runs: from `load_runs`.
      folder: made if missing.
      baseline: as of `methods.compare`.
      studies: as of `tables.methods_table`.

    Returns:
      The path of `losses.png`, loss against steps and against seconds.
    """
    methods, base = compare(runs, baseline)
    rows = methods_table(methods, base, studies=studies)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{name: text for name, (text, _) in row.items()} for row in rows]
    (folder / "results.md").write_text(markdown(*split(texts)), encoding="utf-8")
    write_csv(folder / "results.csv", *split(csv_rows(methods)))
    looks = inside.read(runs)
    seen = {
        "What was seen inside": inside.table(runs, looks),
        "Examples that a step pulled apart": inside.opposing_table(runs, looks),
        "Barriers between runs": inside.barrier_table(runs, looks),
        "Groups of classes in turn, at the end": groups.summary(runs),
        "Groups of classes in turn": groups.table(runs),
    }
    seen = {title: found for title, found in seen.items() if found}
    if seen:
        parts = [
            f"## {title}\n\n{markdown(*split(found))}" for title, found in seen.items()
        ]
        (folder / "looks.md").write_text("\n".join(parts), encoding="utf-8")
        write_csv(folder / "looks.csv", *split(next(iter(seen.values()))))
    drawings = figures.drawings(methods) | inside.drawings(methods, looks)
    inline = {}
    for name, drawing in drawings.items():
        made = figures.draw_all([drawing], methods)
        figures.save(made, folder / f"{name}.png", dpi=150)
        text = figures.svg(made, name)
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
        if figures.has_legend(made):  # the page's table is one
            text = figures.svg(figures.figure(drawing.draw, legend=False), name)
        inline[drawing.title] = text
    both = [drawings[name] for name in ("loss_steps", "loss_seconds")]
    figures.save(figures.draw_all(both, methods), folder / "losses.png", dpi=150)
    text = page.build(rows, table(runs), inline, base, seen)
    (folder / "index.html").write_text(text, encoding="utf-8")
    return folder / "losses.png"


def main(positional: list[str], overrides: list[str]) -> int:
    """Writes the report of the folders named."""
    command.no_arguments((), overrides)
    if not positional:
        raise UserError("name at least one folder with runs")
    output = pathlib.Path(_OUTPUT.value or pathlib.Path(positional[0]) / "report")
    tuned = _TUNED.value
    runs = load_runs(positional, tuned)
    try:
        write_report(runs, output, _BASELINE.value, studies=bool(tuned))
    except OSError as error:
        where = error.filename or output
        raise UserError(f"--output: {where}: {error.strerror}") from error
    print((output / "results.md").read_text(encoding="utf-8"), end="")
    print(f"page: {output / 'index.html'}")
    return 0


if __name__ == "__main__":
    command.run(main, _FLAGS)
