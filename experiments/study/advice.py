"""What to use when: a page of the documentation and the README's table."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import optlab
from experiments.reporting.files import markdown
from experiments.study import rules
from experiments.study.arms import RATE
from experiments.study.claims import Claim
from experiments.study.results import Results, Tried
from experiments.study.rules import Verdict

# The claim that has every method, tuned alike.
METHODS = "methods"
BASE = "adamw"
_HERE = "this table"
_PAGE = """# What to use when

Made by `python -m experiments.study --report` of the runs in
[results/study](../results/study/README.md), which has every claim with its verdict.
The models are small and the trainings short: take the rates for their size, and a sweep
of your own for the last word.

"""
_NOTE = """
The gain is that over AdamW in nats of validation loss, with its 95% interval over the
seeds, both tuned alike: the rate, and what stands under *with*. `adam_learning_rate` is
that of all leaves but hidden matrices; methods without it, AdamW too, have one rate for
all. State and time of a step are against AdamW's. A method loses where the whole
interval of its gain over AdamW is below 0.
"""
_IN_README = """What [the study](docs/study.md) found on small models, all methods
tuned with as many trials; gains are in nats of validation loss, state and time of a
step against AdamW's:
"""
_BEGIN, _END = "<!-- study -->", "<!-- end of study -->"


def write(
    claims: Sequence[Claim],
    found: Mapping[str, Results],
    verdicts: Mapping[str, Verdict],
    root: pathlib.Path,
) -> None:
    """Writes docs/study.md, and the README's table where it has a place for one.

    Args:
      claims: all of them.
      found: their results by name.
      verdicts: the same.
      root: of the repository.
    """
    methods = methods_table(found)
    text = _PAGE + methods + _NOTE
    if _has_methods(found):
        picture = f"results/study/figures/{METHODS}.png"
        text += f"\n![Final loss against the rate](../{picture})\n"
    text += "\n## The claims\n\n"
    counts = [v.word for v in verdicts.values()]
    words = (rules.HOLDS, rules.FAILS, rules.OPEN, rules.NOT_RUN)
    text += ", ".join(f"{counts.count(word)} {word}" for word in words) + ":\n\n"
    lines = [
        (x.name.replace("_", " "), x.sentence, verdicts[x.name].word) for x in claims
    ]
    text += markdown(("claim", "what is said", "verdict"), lines)
    page = root / "docs" / "study.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    readme = root / "README.md"
    if readme.exists() and _has_methods(found):
        before = readme.read_text(encoding="utf-8")
        between = re.escape(_BEGIN) + ".*?" + re.escape(_END)
        new = f"{_BEGIN}\n\n{_IN_README}\n{methods}\n{_END}"
        after = re.sub(between, lambda _: new, before, flags=re.DOTALL)
        if after != before:
            readme.write_text(after, encoding="utf-8")


def methods_table(found: Mapping[str, Results]) -> str:
    """One row a method, the lowest loss first; those that have no run last."""
    if not _has_methods(found):
        return "The methods have not been run from enough seeds yet.\n"
    results = found[METHODS]
    base = results[BASE]
    ranked = sorted(
        results.values(),
        key=lambda tried: (tried.loss is None, tried.loss or 0.0),
    )
    lines = [_line(tried, base, found) for tried in ranked if tried.runs]
    head = (
        *("method", "rate", "with", "gain over AdamW", "state", "step time"),
        *("sensitivity", "needs", "loses in"),
    )
    return markdown(head, lines)


def _has_methods(found: Mapping[str, Results]) -> bool:
    """Whether a method has runs from enough seeds for an interval."""
    if METHODS not in found:
        return False
    results = found[METHODS]
    base = results[BASE]
    return any(x is not base and rules.gain(x, base) for x in results.values())


def _line(tried: Tried, base: Tried, found: Mapping[str, Results]) -> tuple[str, ...]:
    gain = rules.gain(tried, base) if tried is not base else None
    sensitivity = tried.sensitivity()
    return (
        tried.name,
        f"{tried.chosen[RATE]:g}",
        tried.also_tuned or "-",
        gain.text("+.3f") if gain else "-",
        _ratio(tried, base, "state_bytes"),
        _ratio(tried, base, "step_seconds"),
        "-" if sensitivity is None else f"{sensitivity:.3f}",
        _needs(tried),
        ", ".join(_losing(tried.name, found)) or "-",
    )


def _ratio(tried: Tried, base: Tried, field: str) -> str:
    mine, other = tried.median(field), base.median(field)
    return f"{mine / other:.2f}" if mine and other else "-"


def _needs(tried: Tried) -> str:
    """What a training loop has to supply, as the registry says it."""
    name = str(tried.arm.overrides["optimizer.name"])
    entry = optlab.registry.get(name)
    words = [need.replace("_", " ") for need in entry.needs]
    if entry.takes("distribute"):
        words.append("whole matrices")
    if entry.takes("adam_learning_rate"):
        words.append("a rate for the other leaves")
    return ", ".join(words) or "-"


def _losing(name: str, found: Mapping[str, Results]) -> list[str]:
    """The claims and conditions where a method ends above AdamW."""
    lost = []
    for claim, results in found.items():
        for arm, tried in results.items():
            method, _, condition = arm.partition(", ")
            other = results.get(", ".join(filter(None, (BASE, condition))))
            if method != name or other is None or other is tried:
                continue
            gain = rules.gain(tried, other)
            if gain and gain.high < 0:
                where = _HERE if claim == METHODS else claim.replace("_", " ")
                lost.append(f"{where} ({condition})" if condition else where)
    return lost
