"""What to use when: the methods' table and headline, for documentation and README."""

import pathlib
import re
import textwrap
from collections.abc import Mapping

import optlab
from experiments.reporting.files import markdown
from experiments.study import rules
from experiments.study.arms import RATE
from experiments.study.results import Results, Tried

# The claim that has every method, tuned alike.
METHODS = "methods"
# The claim that has some of them on a larger model.
LARGER = "larger_model"
BASE = "adamw"
PAGES = ("README.md", "docs/which.md", "docs/results.md")
# The number of methods in the headline's figure: the best ones and AdamW.
_SHOWN = 6
_NOTE = """All methods are tuned by one rule: first the rate, then what is under *with*,
then the rates once more together. `adam_learning_rate` is the rate of all leaves but
hidden matrices; methods without it have one rate for all leaves, but for LANTON's and
Scion's own arguments. COSMOS has a rank of 8, SPAM resets at every 100 steps,
Stable-SPAM at every 200. The gain over AdamW is in nats of validation loss, with its
95% interval over the seeds. State and FLOPs of a training step, which has only 1,024
tokens, are over AdamW's. The last column says how much higher the loss is, on average,
at half and at twice the best rate, where both were tried.
"""


def write(found: Mapping[str, Results], root: pathlib.Path) -> None:
    """Writes headline and table into the pages that have a place for them.

    The places are between `<!-- headline -->` and `<!-- end of headline -->`, and for
    the table between `<!-- study -->` and `<!-- end of study -->`.

    Args:
      found: the results of each claim.
      root: of the repository.
    """
    if not has_methods(found):
        return
    blocks = {
        "headline": _headline(found),
        "study": "\n".join((methods_table(found), _NOTE, _lists(found))),
    }
    for page in PAGES:
        path = root / page
        if path.exists():
            before = after = path.read_text(encoding="utf-8")
            for name, text in blocks.items():
                after = _filled(after, name, text)
            if after != before:
                path.write_text(after, encoding="utf-8")


def shown(found: Mapping[str, Results]) -> list[str]:
    """The methods of the headline's figure, the lowest loss first."""
    ranked = [tried.name for tried in _ranked(found[METHODS])]
    best = [name for name in ranked if name != BASE][: _SHOWN - 1]
    return [name for name in ranked if name in (*best, BASE)]


def _filled(page: str, name: str, text: str) -> str:
    """A page with a text in the place of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    between = re.escape(begin) + ".*?" + re.escape(end)
    new = f"{begin}\n\n{text}\n{end}"
    return re.sub(between, lambda _: new, page, flags=re.DOTALL)


def _headline(found: Mapping[str, Results]) -> str:
    """The final losses of the methods shown, and how much faster the best one is."""
    results = found[METHODS]
    ranked = [results[name] for name in shown(found)]
    runs = sorted(len(tried.rows) for tried in results.values())
    ends = ", ".join(f"`{tried.name}` {tried.loss:.3f}" for tried in ranked)
    text = (
        "A LLaMA of 0.23 M parameters on bytes, 400 steps, each method tuned in "
        f"{runs[0]} to {runs[-1]} runs; mean and range of three seeds. Losses at the "
        f"end, in nats a byte: {ends}."
    )
    faster = rules.speedup(ranked[0], results[BASE])
    if faster:
        share = f"{1 / faster.mean:.0%}"
        best = ranked[0].name
        text += f" `{best}` is at AdamW's loss after {share} of the steps."
    larger = _gains(found.get(LARGER))
    if larger:
        text += f" With 0.86 M parameters the gains over `{BASE}` are {larger}."
    return textwrap.fill(text, 88, break_on_hyphens=False) + "\n"


def _gains(results: Results | None) -> str:
    """The mean gains over AdamW that are above 0 with their interval, as a list."""
    if not results or not results.complete:
        return ""
    found = {
        name: rules.gain(tried, results[BASE])
        for name, tried in results.items()
        if name != BASE and "," not in name
    }
    clear = {name: x.mean for name, x in found.items() if x and x.low > 0}
    ranked = sorted(clear, key=lambda name: -clear[name])
    return ", ".join(f"`{name}` {clear[name]:.3f}" for name in ranked)


def methods_table(found: Mapping[str, Results]) -> str:
    """One row a method, the lowest loss first; those that have no run last."""
    results = found[METHODS]
    lines = [_line(tried, results[BASE]) for tried in _ranked(results)]
    head = ("method", "rate", "with", "gain over AdamW", "state", "step FLOPs")
    return markdown((*head, "rate off by 2"), lines)


def _ranked(results: Results) -> list[Tried]:
    """The methods that have runs, the lowest loss first."""
    tried = [x for x in results.values() if x.runs]
    return sorted(tried, key=lambda x: x.loss or 0.0)


def _lists(found: Mapping[str, Results]) -> str:
    """What each method needs, and where it loses to AdamW, as lists."""
    lists: dict[str, list[str]] = {}
    for tried in _ranked(found[METHODS]):
        for need in _needs(tried):
            lists.setdefault(f"Need {need}", []).append(f"`{tried.name}`")
    for tried in _ranked(found[METHODS]):
        for place in _losing(tried.name, found):
            lists.setdefault(f"Lose to AdamW {place}", []).append(f"`{tried.name}`")
    lines = [f"- {head}: {', '.join(names)}.\n" for head, names in lists.items()]
    return "".join(lines)


def has_methods(found: Mapping[str, Results]) -> bool:
    """Whether a method has runs from enough seeds for an interval."""
    if METHODS not in found:
        return False
    results = found[METHODS]
    base = results[BASE]
    return any(x is not base and rules.gain(x, base) for x in results.values())


def _line(tried: Tried, base: Tried) -> tuple[str, ...]:
    gain = rules.gain(tried, base) if tried is not base else None
    off = tried.off_by_two
    return (
        tried.name,
        f"{tried.chosen[RATE]:g}",
        tried.also_tuned or "-",
        gain.text("+.3f") if gain else "-",
        _ratio(tried, base, "state_bytes"),
        _ratio(tried, base, "flops"),
        "-" if off is None else f"{off:+.3f}",
    )


def _ratio(tried: Tried, base: Tried, field: str) -> str:
    mine, other = tried.median(field), base.median(field)
    return f"{mine / other:.2f}" if mine and other else "-"


def _needs(tried: Tried) -> list[str]:
    """What a training loop has to supply, as the registry says it."""
    name = str(tried.arm.overrides["optimizer.name"])
    entry = optlab.registry.get(name)
    whole = ["whole matrices"] if entry.takes("distribute") else []
    return [*whole, *(f"`{need}` in each update" for need in entry.needs)]


def _losing(name: str, found: Mapping[str, Results]) -> list[str]:
    """The claims and conditions where the interval of its gain is below 0.

    Claims with a coarse grid and no tuning, as those of sensitivity, do not count.
    """
    lost = []
    for claim, results in found.items():
        if results.sensitivities:
            continue
        for arm, tried in results.items():
            method, _, condition = arm.partition(", ")
            other = results.get(", ".join(filter(None, (BASE, condition))))
            if method != name or other is None or other is tried:
                continue
            gain = rules.gain(tried, other)
            if gain and gain.high < 0:
                title = claim.replace("_", " ")
                where = "here" if claim == METHODS else f"in the claim *{title}*"
                lost.append(f"{where} ({condition})" if condition else where)
    return lost
