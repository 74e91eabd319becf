"""The study's page, tables and figures, and what the documentation has of them.

All of it comes from the table of runs; a claim whose runs are not all there says so.
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.reporting import figures as drawn
from experiments.reporting.files import markdown, split, write_csv
from experiments.study import advice, figures, plan, rules, table
from experiments.study.arms import RATE, TASKS
from experiments.study.claims import Claim
from experiments.study.results import Results, Tried
from experiments.study.rules import Verdict
from experiments.study.table import Row

FOLDER = "results/study"
_HEAD = """# The study: which claims hold here

Made by `python -m experiments.study --report` of `results/study/runs.csv`, {count}
runs; nothing on this page is typed by hand. The table of methods and the headline in
`docs/which.md`, `docs/results.md` and the README are made of the same runs.

All arms of a claim are tuned by one rule: rates a factor of 2 apart, until the best
lies inside. Where all of a method is tuned, then come, from three values on in the same
way, the rate of the other leaves (a factor of 2) and the weight decay (a factor of 3);
at the end these two rates move once more, each alone and both together, until no step
of a factor of 2 is better. The best is that of the mean over the seeds 0, 1 and 2,
which decide weights and order of the data. "At the edge" names values that are the
lowest or highest of those tried. Differences are paired by seed, with Student's
interval at 95%; with three seeds that is 2.5 times the standard deviation of the
differences to both sides, which leaves many small gains undecided. Gains are in nats of
validation loss, positive for a lower loss; they and the steps to a loss are against the
first arm of each table that has the same task, width, batch and number of steps. The
work of a training step is counted; times are not shown, since several machines made the
runs, and often busy ones. "Rate off by 2" is how much higher the loss is at half and at
twice the rate, on average, all else as it is tuned. The sensitivity, where all arms
have the same grid, is the mean of the loss over all rates less the lowest. A claim is
decided by its rule, which was there before its runs.

Figures over rates show them as they were tried first, all else at its centre: lines are
the first seed, small points the other seeds, crosses losses above the axis, and a star
the first seed where more was tuned. Tables have the mean of the seeds.
"""


def write(
    claims: Sequence[Claim],
    rows: Sequence[Row],
    root: pathlib.Path,
    *,
    draw: bool = True,
) -> None:
    """Writes everything.

    Args:
      claims: all of them.
      rows: of the table.
      root: of the repository.
      draw: the figures too, most of the time that it takes; the pages name them anyway.
    """
    folder = root / FOLDER
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    known = table.by_key(rows)
    found = {claim.name: Results(claim.trials, known) for claim in claims}
    verdicts = {claim.name: decided(claim, found[claim.name]) for claim in claims}
    parts = [_HEAD.format(count=len(rows)), _tasks(), _overview(claims, verdicts)]
    for claim in claims:
        results = found[claim.name]
        if draw:
            _draw(claim, results, folder / "figures")
        parts.append(_section(claim, results, verdicts[claim.name]))
    parts.append(_provenance(rows))
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")
    lines = [
        {"claim": claim.name, "arm": name} | row
        for claim in claims
        for name, row in _rows(found[claim.name]).items()
    ]
    write_csv(folder / "arms.csv", *split(lines))
    if draw and advice.has_methods(found):
        made = figures.curves(found[advice.METHODS], advice.shown(found))
        _save(made, "headline", folder / "figures")
    advice.write(found, root)


def decided(claim: Claim, results: Results) -> Verdict:
    """The verdict, where all runs are there."""
    if not results.complete:
        made, left = plan.counts(results)
        return Verdict(
            rules.NOT_RUN, f"{made} of its runs are made, about {left} are missing"
        )
    return claim.decide(results)


def _tasks() -> str:
    """What is learned: each task's config and the fields that the study sets."""
    rows = [
        (name, task.config, ", ".join(f"{x}={y}" for x, y in task.overrides.items()))
        for name, task in TASKS.items()
    ]
    return "Tasks, of which most claims take *small*:\n\n" + markdown(
        ("task", "config", "fields that differ from it"), rows
    )


def _overview(claims: Sequence[Claim], verdicts: dict[str, Verdict]) -> str:
    rows = [
        (
            f"[{claim.name.replace('_', ' ')}](#{claim.name.replace('_', '-')})",
            claim.sentence,
            verdicts[claim.name].word,
            verdicts[claim.name].interval or "-",
        )
        for claim in claims
    ]
    # Links are markup, and nothing else is.
    body = markdown(("claim", "what is said", "verdict", "by"), [("",) * 4])
    head = body.splitlines(keepends=True)[:2]
    lines = [f"| {link} | {' | '.join(_cells(rest))} |\n" for link, *rest in rows]
    found = [verdict.word for verdict in verdicts.values()]
    words = (rules.HOLDS, rules.FAILS, rules.OPEN, rules.NOT_RUN)
    counts = ", ".join(f"{word} {found.count(word)}" for word in words)
    return "".join([f"Verdicts on {len(found)} claims: {counts}.\n\n", *head, *lines])


def _cells(texts: Sequence[str]) -> list[str]:
    """Texts as the cells of a Markdown table show them."""
    line = markdown(list(texts), []).splitlines()[0]
    return line.removeprefix("| ").removesuffix(" |").split(" | ")


def _section(claim: Claim, results: Results, verdict: Verdict) -> str:
    title = claim.name.replace("_", " ")
    text = (
        f"## {title}\n\n"
        f"{claim.sentence} ({claim.source})\n\n"
        f"Rule: {claim.rule}\n\n"
        f"**{verdict.word}**: {verdict.sentence}.\n\n"
        f"    python -m experiments.study {claim.name}\n\n"
    )
    rows = _rows(results)
    if any(tried.runs for tried in results.values()):
        # Columns that are empty in the whole table are left out.
        told = {x for row in rows.values() for x, y in row.items() if _shown(y) != "-"}
        shown = [
            {"arm": name} | {x: _shown(y) for x, y in row.items() if x in told}
            for name, row in rows.items()
        ]
        text += markdown(*split(shown)) + "\n"
        for name in _drawn(claim, results):
            text += f"![{title}](figures/{name}.png)\n"
    return text


def _rows(results: Results) -> dict[str, dict[str, Any]]:
    """Arm -> its numbers, against the first arm of its setting."""
    known = results.sensitivities
    return {
        name: _row(tried, results.base(tried), known.get(name))
        for name, tried in results.items()
    }


def _row(tried: Tried, base: Tried, sensitivity: float | None) -> dict[str, Any]:
    gain = rules.gain(tried, base) if tried is not base else None
    faster = rules.speedup(tried, base) if tried is not base else None
    rate = tried.chosen.get(RATE)
    if rate is None:
        rate = tried.arm.overrides.get(RATE)
    edges = [f"{x.rpartition('.')[2]} {edge}" for x, edge in tried.edges.items()]
    accuracy = tried.median("val_accuracy")
    return {
        "rate": rate,
        "also tuned": tried.also_tuned,
        "at the edge": ", ".join(edges),
        "val loss": _rounded(tried.loss),
        "accuracy": _rounded(accuracy),
        "gain": gain.text() if gain else "",
        "times fewer steps": faster.text(".2f") if faster else "",
        "rate off by 2": _rounded(tried.off_by_two, 3),
        "sensitivity": _rounded(sensitivity, 4),
        "state bytes": tried.median("state_bytes"),
        "step FLOPs": tried.median("flops"),
        "seeds": len(tried.runs),
        "runs": len(tried.rows),
        "diverged": sum(math.isinf(row.loss) for row in tried.rows.values()),
    }


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float) and math.isinf(value):
        return "diverged"
    if isinstance(value, int | float) and abs(value) >= 1e5:
        return f"{value:,.0f}" if value < 1e8 else f"{value:.3g}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _drawn(claim: Claim, results: Results) -> dict[str, Callable[..., Any]]:
    """Name -> what draws it: the claim's figure, and the gains where seeds allow."""
    made = {claim.name: claim.figure}
    if rules.gains(results):
        made[f"{claim.name}_gains"] = figures.gains
    return made


def _draw(claim: Claim, results: Results, folder: pathlib.Path) -> None:
    """Draws the figures of a claim that has runs."""
    if not any(tried.runs for tried in results.values()):
        return
    for name, draw in _drawn(claim, results).items():
        # While too many runs are missing for a claim's own figure, the losses.
        made = draw(results) or figures.rates(results)
        _save(made, name, folder)


def _save(made: Figure, name: str, folder: pathlib.Path) -> None:
    """Saves a figure, to the byte alike for the same runs."""
    drawn.save(made, folder / f"{name}.png", dpi=100, metadata={"Software": None})


def _provenance(rows: Sequence[Row]) -> str:
    """What the runs were made with."""
    data = sorted({f"{row.config}: {row.data}" for row in rows})
    versions = sorted({row.versions.rpartition(", commit")[0] for row in rows})
    lines = [*(f"* {x}" for x in data), *(f"* {x}" for x in versions)]
    text = "\n".join(lines) if lines else "There are no runs yet."
    return f"## Data and versions\n\n{text}\n"
