"""The study's rules on made-up runs, and the pages that come of a table of runs."""

import math
import pathlib
import runpy

import pytest
from scipy import stats

from experiments import demo
from experiments.study import advice, claims, plan, report, rules, table
from experiments.study.arms import DECAY, OTHERS, RATE, Arm
from experiments.study.results import Results, Tried
from experiments.study.search import Axis, Search
from tests.helpers.study_rows import row, rows_of

# configs/combinations.py registers its methods.
pytestmark = pytest.mark.usefixtures("own_files")

ROOT = pathlib.Path(__file__).parents[2]


def compared(first, second, curves=(None, None), **own):
    """Two arms, each of which has these losses by seed."""
    trials, rows = {}, []
    pairs = zip(("new", "old"), (first, second), curves, strict=True)
    for name, losses, curve in pairs:
        search = Search((Axis(RATE, 1.0, start=1, most=1),), len(losses))
        trials[name] = Arm("small", {"optimizer.kwargs.eps": float(len(rows))}, search)
        tried = Tried(name, trials[name], {})
        rows += [
            row(tried.point((1.0,)), seed, loss, curve, **own)
            for seed, loss in enumerate(losses)
        ]
    return Results(trials, table.by_key(rows))


def test_a_difference_is_paired_by_seed():
    new, old = [2.0, 2.3, 1.7], [2.1, 2.41, 1.79]
    results = compared(new, old)
    found = rules.gain(results["new"], results["old"])
    expected = stats.ttest_rel(old, new).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # The seeds themselves differ by far more than the arms.
    verdict = rules.lower_loss(results, "new", "old")
    assert verdict.word == rules.HOLDS
    assert verdict.interval == "+0.1000 [+0.0752, +0.1248]"
    assert rules.lower_loss(results, "old", "new").word == rules.FAILS
    assert rules.lower_loss(results, "new", "old", by=0.1).word == rules.OPEN
    assert rules.no_worse(results, "old", "new", 0.13).word == rules.HOLDS
    assert rules.no_worse(results, "old", "new", 0.07).word == rules.FAILS
    assert rules.no_worse(results, "old", "new", 0.1).word == rules.OPEN


def test_one_seed_decides_nothing_and_equal_ones_are_no_error():
    one = compared([2.0], [3.0])
    assert rules.lower_loss(one, "new", "old").word == rules.NOT_RUN
    same = compared([2.0, 2.0, 2.0], [2.0, 2.0, 2.0])
    assert rules.lower_loss(same, "new", "old").word == rules.FAILS
    assert rules.no_worse(same, "new", "old", 0.01).word == rules.HOLDS


def test_a_run_that_diverged_counts_as_before_the_first_step():
    results = compared([2.0, 2.0, 2.0], [None, None, 2.1])
    found = rules.gain(results["new"], results["old"])
    assert found.mean == pytest.approx((3.5 + 3.5 + 0.1) / 3)
    assert results["old"].loss == math.inf


def test_steps_are_read_between_evaluations():
    curve = {100: 4.0, 200: 3.0, 400: 2.0}
    found = row({RATE: 1.0}, 0, 2.0, curve)
    assert rules.steps_to(found, 3.0) == 200
    assert rules.steps_to(found, 3.5) == 150
    assert rules.steps_to(found, 2.5) == 300
    assert rules.steps_to(found, 4.75) == pytest.approx(50.5)
    assert rules.steps_to(found, 1.9) == math.inf
    fast = {100: 3.0, 200: 2.0, 400: 1.5}
    results = compared([1.5] * 3, [2.0] * 3, (fast, curve))
    assert rules.speedup(results["new"], results["old"]).mean == pytest.approx(2.0)
    assert rules.fewer_steps(results, "new", "old", 1.5).word == rules.HOLDS
    # The slow one never gets there: it has not been shown to take fewer steps.
    assert rules.speedup(results["old"], results["new"]).mean == pytest.approx(0.5)


def test_sensitivity_has_an_interval_over_seeds():
    def sharp(values, seed):
        return 2 + 0.01 * seed + 0.3 * math.log(values[0]) ** 2

    def flat(values, seed):
        return 2.5 + 0.02 * seed**2 + 0.1 * math.log(values[0]) ** 2

    grid = Search((Axis(RATE, 1.0, start=3, most=3),), 3, everywhere=True)
    trials = {x: Arm("small", {"optimizer.name": x}, grid) for x in ("adamw", "muon")}
    rows = rows_of({"adamw": trials["adamw"]}, sharp)
    rows += rows_of({"muon": trials["muon"]}, flat)
    results = Results(trials, table.by_key(rows))
    share = 2 / 3 * math.log(2) ** 2
    assert results["adamw"].sensitivities == pytest.approx([0.3 * share] * 3)
    assert results.sensitivities["muon"] == pytest.approx(0.1 * share)
    assert rules.less_sensitive(results, "muon", "adamw").word == rules.HOLDS
    assert rules.less_sensitive(results, "adamw", "muon").word == rules.FAILS


@pytest.mark.usefixtures("own_files")
def test_gains_are_over_the_first_arm_of_the_same_setting():
    def arm(task, batch, name="adamw"):
        fields = {"train.batch_size": batch, "optimizer.name": name}
        return Arm(task, fields, Search((Axis(RATE, 1.0, start=1, most=1),), 3))

    asked = {
        "plain, 2": arm("small", 2),
        "plain, 8": arm("small", 8),
        "other, 2": arm("combined", 2, "lanton_cosmos"),  # the same data
        "other, 8": arm("small", 8, "muon"),
        "larger": arm("medium", 8),
    }
    losses = dict(zip(asked, (3.0, 2.0, 2.9, 1.8, 1.0), strict=True))
    known = {}
    for name, loss in losses.items():
        rows = rows_of({name: asked[name]}, lambda values, seed, loss=loss: loss)
        known |= table.by_key(rows)
    results = Results(asked, known)
    gains = {name: gain.mean for name, gain in rules.gains(results).items()}
    assert gains == pytest.approx({"other, 2": 0.1, "other, 8": 0.2})


def test_rates_are_those_before_other_values_were_tuned():
    def loss(values, seed):
        rate, decay = values
        return 2 + 0.01 * seed + 0.1 * abs(math.log2(rate)) - 0.1 * (decay > 0.1)

    axes = Axis(RATE, 1.0), Axis("optimizer.weight_decay", 0.1, factor=3.0)
    trials = {"tuned": Arm("small", {}, Search(axes, 3))}
    results = Results(trials, table.by_key(rows_of(trials, loss)))
    tried = results["tuned"]
    assert tried.chosen["optimizer.weight_decay"] == 0.3
    assert {values[1] for values, _ in tried.rates} == {0.1}
    assert tried.sensitivities == pytest.approx([0.2 / 3])
    assert not results.sensitivities
    assert tried.off_by_two is None  # half and twice the rate had another decay
    again = {"tuned": Arm("small", {}, Search(axes, 3, together=1))}
    moved = Results(again, table.by_key(rows_of(again, loss)))["tuned"]
    assert moved.chosen == tried.chosen
    assert moved.off_by_two == pytest.approx(0.1)
    # The line has the rates as they were tried, and the best trial is beside it.
    (line,) = results.lines()
    shown = [(run.rate, run.loss) for run in line.runs if not run.config["seed"]]
    assert sorted(shown) == [(0.5, 2.1), (1.0, 2.0), (2.0, 2.1)]
    (best,) = results.tuned()
    assert best.rate == 1.0 and best.loss == pytest.approx(1.91)
    assert line.sensitivity is None


def test_claims_of_several_parts():
    good, bad, maybe = (
        rules.Verdict(word, word, "1")
        for word in (rules.HOLDS, rules.FAILS, rules.OPEN)
    )
    assert rules.all_of(good, good).word == rules.HOLDS
    assert rules.all_of(good, maybe).word == rules.OPEN
    assert rules.all_of(maybe, bad, good).word == rules.FAILS
    assert rules.best_of(bad, good).word == rules.HOLDS
    assert rules.best_of(bad, maybe).word == rules.OPEN
    cases = dict(zip("abc", (good, good, bad), strict=True))
    assert rules.share_of(cases, 2 / 3).word == rules.HOLDS
    assert rules.share_of(cases).word == rules.FAILS
    assert rules.share_of({"a": good, "b": maybe}).word == rules.OPEN
    spread = rules.Interval(0.25, 0.2, 0.3)
    limits = {(0.1, 0.4): rules.HOLDS, (0.4, 0.5): rules.FAILS, (0.25, 1): rules.OPEN}
    for pair, word in limits.items():
        assert rules.within(spread, *pair, "{}", ".0%").word == word
    smaller = compared([2.0, 2.0], [2.0, 2.0], state_bytes=7)
    assert rules.smaller(smaller, "new", "old", "state_bytes").word == rules.HOLDS
    assert rules.smaller(smaller, "new", "old", "flops", 1.5).word == rules.FAILS


def made_up(values, seed):
    """Losses as of real runs: a bowl about a rate, and seeds that differ."""
    return 2 + 0.003 * (seed + 1) ** 2 + 0.01 * abs(math.log2(values[0] / 3e-3))


def _shifted(name, gains, flops):
    """The verdict on a claim whose arms gain so much over `made_up`, at such costs."""
    (one,) = claims.load([name])
    rows = []
    for arm, trial in one.trials.items():
        gain = next((x for part, x in gains.items() if part in arm), 0.0)
        made = rows_of({arm: trial}, lambda v, s, gain=gain: made_up(v, s) - gain)
        rows += [x._replace(flops=flops.get(arm, 100)) for x in made]
    return one.decide(Results(one.trials, table.by_key(rows))).word


@pytest.mark.parametrize(
    ("name", "gains", "flops", "word"),
    [
        ("adahessian_interval", {}, {"every 5": 119}, rules.HOLDS),
        ("adahessian_interval", {}, {"every 5": 130}, rules.FAILS),
        ("adahessian_interval", {"every 5": -1}, {"every 5": 119}, rules.FAILS),
        ("cosmos_gamma", {"gamma 0.5": 0.1}, {}, rules.HOLDS),
        ("cosmos_gamma", {"gamma 0.5": 0.1, "gamma 1": 0.2}, {}, rules.FAILS),
        ("images", {"adamw": 0, "sgd": 0, "": 0.1}, {}, rules.HOLDS),
        ("images", {"adamw": 0, "sgd": 0.2, "": 0.1}, {}, rules.FAILS),
    ],
)
def test_a_claim_is_decided_by_all_that_it_says(name, gains, flops, word):
    assert _shifted(name, gains, flops) == word


def test_a_table_of_runs_makes_the_whole_report(tmp_path):
    every = claims.load()
    some = [x for x in every if x.name in ("root", "cosmos_rank", "lanton_spread")]
    rows = rows_of({k: arm for x in every for k, arm in _named(x)}, made_up)
    (tmp_path / "README.md").write_text(
        "Before.\n<!-- headline -->\nold\n<!-- end of headline -->\n"
        "<!-- study -->\nold\n<!-- end of study -->\nAfter.\n"
    )
    report.write(every, rows, tmp_path, draw=False)
    page = (tmp_path / "results/study/README.md").read_text()
    for one in every:
        section = page.partition(f"\n## {one.name.replace('_', ' ')}\n")[2]
        section = section.partition("\n## ")[0]
        assert one.sentence in section and one.rule in section
        assert f"\n    python -m experiments.study {one.name}\n" in section
        refined = any(arm.refines for arm in one.trials.values())
        assert (rules.NOT_RUN in section) == refined, one.name
        assert f"![{one.name.replace('_', ' ')}](figures/{one.name}.png)" in section
        for arm in one.trials:
            assert f"\n| {arm} |" in section.replace("\\_", "_")
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("Before.\n") and readme.endswith("\nAfter.\n")
    assert "| adamw |" in readme and "old" not in readme
    found = _results(every, rows)
    assert advice.methods_table(found) in readme
    headline = " ".join(readme.partition("<!-- end of headline -->")[0].split())
    chosen = advice.shown(found)
    assert len(chosen) == 6 and advice.BASE in chosen
    for name in chosen:
        assert f"`{name}` {found[advice.METHODS][name].loss:.3f}" in headline
    again = tmp_path / "again"
    report.write(some, rows, again)
    page = (again / "results/study/README.md").read_text()
    for one in some:
        for name in (one.name, f"{one.name}_gains"):
            assert f"](figures/{name}.png)" in page
            path = again / f"results/study/figures/{name}.png"
            assert path.stat().st_size > 5000


def _named(claim):
    return [((claim.name, name), arm) for name, arm in claim.trials.items()]


def _results(every, rows):
    known = table.by_key(rows)
    return {one.name: Results(one.trials, known) for one in every}


def test_without_runs_every_claim_says_so(tmp_path):
    some = claims.load(["methods", "cosmos_memory", "uba_adamw"])
    readme = tmp_path / "README.md"
    readme.write_text("<!-- study -->\nold\n<!-- end of study -->\n")
    report.write(some, [], tmp_path)
    assert "\nold\n" in readme.read_text()
    page = (tmp_path / "results/study/README.md").read_text()
    for one in some:
        left = plan.sizes([one], {})[0].left
        said = f"**{rules.NOT_RUN}**: 0 of its runs are made, about {left} are missing."
        assert said in page and left > 9
    assert "figures/" not in page


def test_the_demo_has_the_best_rates_of_the_study():
    (claim,) = claims.load(["larger_model"])
    known = table.by_key(table.read(ROOT / report.FOLDER / "runs.csv"))
    results = Results(claim.trials, known)
    for (name, schedule), rate in demo.RATES.items():
        arm = name if schedule == "cosine" else f"{name}, UBA"
        assert results[arm].chosen[RATE] == rate, (name, schedule)


def test_the_sweep_for_accelerators_starts_from_the_best_of_the_study():
    (claim,) = claims.load(["methods"])
    known = table.by_key(table.read(ROOT / report.FOLDER / "runs.csv"))
    results = Results(claim.trials, known)
    swept = runpy.run_path(str(ROOT / "configs/sweeps/accelerator.py"))["_BEST"]
    for name, best in swept.items():
        chosen = results[name].chosen
        own = [chosen.get(x, 0.0) for x in (RATE, OTHERS, DECAY)]
        assert [x or 0.0 for x in best] == pytest.approx(own, rel=1e-2), name


def test_what_is_committed_is_what_comes_out(tmp_path):
    runs = ROOT / report.FOLDER / "runs.csv"
    rows = table.read(runs)
    (tmp_path / "docs").mkdir()
    for path in advice.PAGES:
        (tmp_path / path).write_text((ROOT / path).read_text())
    report.write(claims.load(), rows, tmp_path, draw=False)
    made = [f"{report.FOLDER}/README.md", f"{report.FOLDER}/arms.csv"]
    for path in (*made, *advice.PAGES):
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), (
            f"{path} is not what python -m experiments.study --report makes"
        )
    page = (ROOT / report.FOLDER / "README.md").read_text()
    for line in page.splitlines():
        if line.startswith("!["):
            figure = line.partition("](")[2].removesuffix(")")
            assert (ROOT / report.FOLDER / figure).exists(), figure
