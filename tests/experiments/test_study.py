"""The study: searches, the table of runs, what is wanted next, and a real run of it."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from experiments import config as configs
from experiments.errors import UserError
from experiments.study import __main__ as main
from experiments.study import arms, claims, figures, plan, rules, search, table, work
from experiments.study.arms import DECAY, OTHERS, RATE, Arm
from experiments.study.meanings import Meanings
from experiments.study.results import Results
from experiments.study.search import Axis, Search
from tests.helpers.study_rows import row, rows_of

# configs/combinations.py registers its methods.
pytestmark = pytest.mark.usefixtures("own_files")


def walked(asked, loss, limit=100):
    """All trials of a search in its order, where `loss(values, seed)` is their loss."""
    losses, order = {}, []
    while missing := search.wanted(asked, losses):
        assert not set(missing) & set(order)
        order += missing
        losses |= {trial: loss(*trial) for trial in missing}
        assert len(order) < limit
    return order, losses


def bowl(*least):
    """A loss with its minimum at these values."""

    def loss(values, seed):
        off = zip(values, least, strict=True)
        return 2 + 0.01 * seed + sum(math.log(x / best) ** 2 for x, best in off)

    return loss


@pytest.mark.parametrize(
    ("least", "rates"),
    [
        (1.0, [0.5, 1, 2, 4]),  # inside at once
        (8.0, [0.5, 1, 2, 4, 8, 16]),  # it grows until a neighbour is worse
        (0.25, [0.125, 0.25, 0.5, 1, 2, 4]),
        (1e9, [0.5, 1, 2, 4, 8, 16, 32]),  # as far as it may
    ],
)
def test_rates_grow_until_the_best_lies_inside(least, rates):
    asked = Search((Axis(RATE, 1.0, start=4, most=7),), seeds=3)
    order, losses = walked(asked, bowl(least))
    assert sorted(values[0] for values, seed in order if not seed) == rates
    best = search.best(asked, losses)
    assert best == (min(rates, key=lambda rate: bowl(least)((rate,), 0)),)
    assert [trial for trial in order if trial[1]] == [(best, 1), (best, 2)]
    at_edge = {RATE: "highest"} if least == 1e9 else {}
    assert search.edges(asked, losses) == at_edge


def test_axes_are_tuned_in_turn_and_values_may_be_listed():
    asked = Search(
        (Axis(RATE, 1.0), Axis("b2", 0.95, values=(0.9, 0.95, 0.99)), Axis(DECAY, 0.1)),
        seeds=1,
    )
    order, losses = walked(asked, bowl(2.0, 0.99, 0.2))
    assert order[:3] == [
        ((0.5, 0.95, 0.1), 0),
        ((1, 0.95, 0.1), 0),
        ((2, 0.95, 0.1), 0),
    ]
    assert order[3] == ((4, 0.95, 0.1), 0)
    # Each axis starts from the best of those before it; its centre is known already.
    assert order[4:6] == [((2, 0.9, 0.1), 0), ((2, 0.99, 0.1), 0)]
    assert {values[:2] for values, _ in order[6:]} == {(2, 0.99)}
    assert search.best(asked, losses) == (2, 0.99, 0.2)


def test_a_close_second_gets_all_seeds_and_the_mean_decides():
    def loss(values, seed):
        at_seed = {1.0: (2.000, 2.05, 2.05), 2.0: (2.005, 2.00, 2.00)}
        return at_seed[values[0]][seed] if values[0] in at_seed else 3.0

    asked = Search((Axis(RATE, 1.0, start=4, most=7),), seeds=3)
    order, losses = walked(asked, loss)
    assert sum(1 for _, seed in order if seed) == 4
    assert search.best(asked, losses) == (2.0,)
    everywhere, _ = walked(asked._replace(everywhere=True), loss)
    assert len(everywhere) == 4 * 3


def test_rates_that_depend_on_each_other_are_found_at_the_end():
    def valley(values, seed):
        # Neither rate is better alone; the decay is tuned between.
        a, b, decay = (math.log2(x) for x in values)
        return 3 + 4 * (a - b) ** 2 + 0.1 * (a + b - 6) ** 2 + decay**2

    axes = (Axis(RATE, 1.0), Axis(OTHERS, 1.0), Axis(DECAY, 1.0))
    alone, found = Search(axes, seeds=1), Search(axes, seeds=1, together=2)
    assert search.best(alone, walked(alone, valley)[1]) == (1.0, 1.0, 1.0)
    order, losses = walked(found, valley)
    assert search.best(found, losses) == (8.0, 8.0, 1.0)
    assert search.edges(found, losses) == {}
    # All six neighbours of the best were tried, and none at another decay.
    near = {(x, y, 1.0) for x in (4, 8, 16) for y in (4, 8, 16)} - {
        (4, 16, 1),
        (16, 4, 1),
    }
    assert near <= {values for values, _ in order}
    # A search that would never end stops, and says so.
    down = lambda values, seed: 100 - math.log(values[0] * values[1])  # noqa: E731
    order, losses = walked(found, down)
    assert search.edges(found, losses)[RATE] == "highest"


def test_divergence_sends_the_search_down_and_ends_it():
    asked = Search((Axis(RATE, 1.0, start=3, most=6),), seeds=2)
    order, losses = walked(asked, lambda values, seed: math.inf)
    assert sorted(v[0] for v, s in order if not s) == [0.0625, 0.125, 0.25, 0.5, 1, 2]
    assert search.best(asked, losses) is not None


def test_the_order_in_which_runs_end_changes_nothing():
    asked = Search((Axis(RATE, 1.0), Axis(OTHERS, 1.0)), seeds=2)
    loss = bowl(2.0, 0.5)
    _, losses = walked(asked, loss)
    one_by_one = {}
    while missing := search.wanted(asked, one_by_one):
        one_by_one[missing[-1]] = loss(*missing[-1])
    assert one_by_one == losses


def arm(name="adamw", task="small", seeds=3, **own):
    fields = {"optimizer.name": name, **own}
    return Arm(task, fields, Search((Axis(RATE, 4e-3),), seeds))


def test_arms_that_mean_the_same_share_their_runs():
    named = {
        "optimizer.weight_decay": 0.1,
        "optimizer.kwargs.b2": 0.95,
        "schedule.name": "cosine",
    }
    bare, full = arm(), arm(**named)
    assert bare.fields((4e-3,)) == full.fields((4e-3,))
    # The config's own rate is written, and what differs from the config's own values.
    assert bare.fields((4e-3,))[RATE] == 4e-3
    other = arm(**{"schedule.warmup_fraction": 0.0}).fields((4e-3,))
    assert other["schedule.warmup_fraction"] == 0.0


def test_the_table_keeps_every_number(tmp_path):
    path = tmp_path / "runs.csv"
    first = row({RATE: 4e-3, "optimizer.wrappers": "skip_spikes(watch=both)"}, 2)
    lost = row({RATE: 4.0}, 0, loss=None, curve={}, accuracy=0.5)
    assert table.read(path) == []
    table.write(path, [first, lost])
    assert table.read(path) == [first, lost]
    again = first._replace(val_loss=1.5)
    assert table.by_key([first, lost, again]) == {first.key: again, lost.key: lost}
    text = path.read_text()
    path.write_text(text.replace("val_loss", "loss", 1))
    with pytest.raises(UserError, match="other columns, loss, val_loss"):
        table.read(path)
    path.write_text(text.replace(f"{first.steps},", "many,", 1))
    with pytest.raises(UserError, match=r"line 2: .*many"):
        table.read(path)


def test_a_digest_stays_with_younger_fields_and_changes_with_defaults(tmp_path):
    path = tmp_path / "defaults.json"
    config, fields = "configs/stdlib_lm.py", {RATE: 1e-3, "optimizer.name": "cosmos"}
    meanings = Meanings(path)
    digest = meanings.digest(config, fields, 0)
    meanings.save()
    assert Meanings(path).digest(config, fields, 0) == digest
    # A rate's digest is the same whether or not its family was read for another one.
    other = meanings.digest(config, fields | {RATE: 2e-3}, 0)
    assert other != digest == meanings.digest(config, fields, 0)
    assert Meanings(path).digest(config, fields | {RATE: 2e-3}, 0) == other
    assert meanings.digest(config, fields, 1) != digest
    evaluated = fields | {"train.eval_every": 7}
    assert meanings.digest(config, evaluated, 0) == digest  # the training is the same
    first = json.loads(path.read_text())
    younger = {name: dict(own) for name, own in first.items()}
    del younger["base"]["model.remat"], younger["cosmos"]["optimizer.kwargs.gamma"]
    path.write_text(json.dumps(younger))
    assert Meanings(path).digest(config, fields, 0) == digest
    for section, name, value in [
        ("base", "task.context", 64),
        ("cosmos", "optimizer.kwargs.gamma", 0.3),
    ]:
        changed = {x: dict(own) for x, own in first.items()}
        changed[section][name] = value
        path.write_text(json.dumps(changed))
        assert Meanings(path).digest(config, fields, 0) != digest


def claim(name, trials):
    def decide(results):
        return rules.lower_loss(results, *list(trials)[:2])

    return claims.Claim(name, "So.", "here", "seen", trials, decide, figures.rates)


def test_what_is_wanted_comes_from_the_table_alone():
    shared, own = arm(), arm("cosmos")
    both = claim("first", {"adamw": shared, "cosmos": own})
    again = claim("second", {"base": shared})
    chosen = [both, again]
    asked = plan.wanted(chosen, {}, 1)
    assert [one.name for one in asked] == ["first, adamw"] * 3 + ["first, cosmos"] * 3
    assert len(plan.wanted(chosen, {}, 100)) == 6  # the second has them already
    sizes = {size.claim: size for size in plan.sizes(chosen, {})}
    assert (sizes["first"].left, sizes["second"].left) == (10, 0)
    assert plan.counts(Results(both.trials, {})) == (0, 10)
    known = table.by_key(rows_of(both.trials, bowl(8e-3)))
    assert plan.counts(Results(both.trials, known)) == (len(known), 0)
    first = dict(list(known.items())[:1])  # of 30 seconds, as it is of the same shape
    left = plan.sizes(chosen, first)[0]
    assert left.hours == pytest.approx(left.left * 30 / 3600)
    longer = claim("long", {"adamw": arm(**{"train.steps": 800})})
    assert plan.sizes([longer], first)[0].hours > left.hours / left.left * 5
    assert plan.wanted(chosen, known, 100) == []
    assert all(size.left == 0 for size in plan.sizes(chosen, known))
    # Without one line exactly that run is wanted again, or named as failed.
    gone = next(iter(known))
    left = {key: one for key, one in known.items() if key != gone}
    assert [one.key for one in plan.wanted(chosen, left, 100)] == [gone]
    assert plan.wanted(chosen, left, 100, failed=[gone]) == []


def test_a_refined_schedule_waits_for_the_norms_of_the_run_that_it_refines(
    tmp_path, monkeypatch
):
    linear = arm(**{"schedule.name": "linear"})
    refined = arm(**{"schedule.name": "refined"})._replace(refines="linear")
    trials = {"linear": linear, "refined": refined}
    chosen = [claim("refine", trials)]
    assert {one.name for one in plan.wanted(chosen, {}, 100)} == {"refine, linear"}
    rows = rows_of({"linear": linear}, bowl(4e-3))
    known = table.by_key(rows)
    best = Results(trials, known)["linear"].runs[0]
    (again,) = plan.wanted(chosen, known, 100)
    # The same run, for what the table does not have of it.
    assert (again.key, again.norms) == (best.key, f"{arms.NORMS}/{best.digest}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / again.norms).mkdir(parents=True)
    asked = plan.wanted(chosen, known, 100)
    assert {one.fields["schedule.kwargs.run"] for one in asked} == {again.norms}


def test_a_table_that_is_not_there_is_no_table_without_runs(
    tmp_path, monkeypatch, given, capsys
):
    monkeypatch.chdir(tmp_path)
    for flags, names, said in (
        ({"plan": True, "runs": "typo.csv"}, [], "--runs: no file 'typo.csv'"),
        ({"report": True, "runs": "typo.csv"}, [], "--runs: no file 'typo.csv'"),
        ({"report": True}, ["cosmos"], "'cosmos': --report is of all claims"),
        ({"report": True, "plan": True}, [], "--plan: not with --report"),
    ):
        given(main._FLAGS, **flags)
        with pytest.raises(UserError, match=said):
            main.main(names, [])
        for name in flags:
            main._FLAGS[name].unparse()
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    table.write(tmp_path / "runs.csv", [])
    given(main._FLAGS, plan=True, runs=tmp_path / "runs.csv")
    assert main.main(["cosmos_memory"], []) == 0
    assert "| cosmos_memory | 3 | 0 |" in capsys.readouterr().out.replace("\\_", "_")


def test_every_arm_of_every_claim_has_a_config():
    """Each kind of arm once: what differs in numbers alone is read alike."""
    seen = set()
    known = claims.load()
    assert [one.name for one in known] == list(claims.NAMES)
    for tried in (found for one in known for found in one.trials.values()):
        fields = tried.fields(tuple(axis.center for axis in tried.search.axes))
        kind = tried.config, *((x, str(v)) for x, v in fields.items() if x != RATE)
        if kind in seen or tried.refines:
            continue
        seen.add(kind)
        point = arms.point("any", tried, fields, 1)
        assert point.config.seed == 1
        assert all(point.overrides[x] == value for x, value in fields.items())
    with pytest.raises(UserError, match=r"'cosmo' is no claim.*nearest: cosmos"):
        claims.load(["cosmo"])


def test_two_runs_are_made_once_and_go_on_from_the_table(tmp_path, monkeypatch):
    own = {"train.steps": 3, "train.eval_every": 2, "train.batch_size": 8}
    monkeypatch.setitem(arms.TASKS, "tiny", arms.Task("configs/digits.py", own))
    one = Search((Axis(RATE, 4e-3, start=1, most=1),), 1)
    trials = {
        name: Arm("tiny", {"optimizer.name": name}, one) for name in ("adamw", "sgd")
    }
    runs, said = tmp_path / "runs.csv", []
    study = work.Study([claim("two", trials)], runs, tmp_path / "runs", 1, "inline")
    assert study.run(0.0, said.append) == 0
    assert said == ["study: 2 runs, about 0 left, about 0.0 hours with 1 workers"]
    rows = table.read(runs)
    assert [x.overrides.get("optimizer.name") for x in rows] == [None, "sgd"]
    for found in rows:
        assert found.reason == "completed" and found.steps == 3
        assert list(found.curve) == [2, 3] and found.curve[3] == found.val_loss
        assert found.state_bytes and found.flops and found.step_seconds
        assert (
            found.tokens == 3 * 8
            and 0 < found.val_accuracy < 1
            and "jax" in found.versions
        )
    assert rows[0].flops > rows[1].flops
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    # In another folder, as on another machine: what the table has is there.
    again = work.Study([claim("two", trials)], runs, tmp_path / "other", 1, "inline")
    assert again.run(0.0, said.append) == 0
    assert not (tmp_path / "other").exists() and len(said) == 1
    # A config that means something else today is another run.
    defaults = runs.with_name("defaults.json")
    first = json.loads(defaults.read_text())
    first["sgd"]["optimizer.kwargs.momentum"] = 0.5
    defaults.write_text(json.dumps(first))
    changed = work.Study([claim("two", trials)], runs, tmp_path / "runs", 1, "inline")
    assert len(changed.known) == 1
    # Other data are not mixed with those of the table.
    table.write(runs, [rows[0]._replace(data="0" * 12)])
    mixed = work.Study([claim("two", trials)], runs, tmp_path / "runs", 1, "inline")
    with pytest.raises(UserError, match="on the data 000000000000, and here"):
        mixed.run(0.0, said.append)


def test_it_stops_when_the_time_is_up(tmp_path, monkeypatch):
    started = []

    class Endless:
        """Stands for a sweep that works until it is told to stop."""

        def __init__(self, points, *rest, **finished):
            self.points, self.stopped, self.failed = points, [], {}

        def check(self, *, overwrite):
            assert overwrite

        def run(self):
            started.append(len(self.points))
            while not self.stopped:
                time.sleep(0.01)
            return 128 + self.stopped[0]

    monkeypatch.setattr(work, "Sweep", Endless)
    monkeypatch.setattr(work.Study, "_check_data", lambda self, point: None)
    trials = {"adamw": arm(), "cosmos": arm("cosmos")}
    runs, said = tmp_path / "runs.csv", []
    study = work.Study([claim("two", trials)], runs, tmp_path / "runs", 2)
    assert study.run(0.2 / 60, said.append) == 0
    assert started == [6]
    assert said == ["study: 0 runs, about 10 left, about 0.1 hours with 2 workers"]
    assert study.run(1e-9, said.append) == 0 and started == [6]


def test_adamw_with_two_rates_is_adamw_where_they_are_equal():
    configs.load("configs/combinations.py", [])
    entry = optlab.registry.get("adamw_two_rates")
    params = {"w": jnp.ones((3, 2)), "embed": jnp.ones((5, 3)), "bias": jnp.zeros(2)}
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size).reshape(x.shape)), params)

    def updates(tx):
        return tx.update(grads, tx.init(params), params)[0]

    plain = updates(optlab.registry.get("adamw").build(1e-2, weight_decay=0.1))
    same = updates(entry.build(1e-2, weight_decay=0.1))
    two = updates(entry.build(1e-2, weight_decay=0.1, adam_learning_rate=2e-2))
    for name in params:
        factor = 1 if name == "w" else 2
        np.testing.assert_allclose(same[name], plain[name], rtol=1e-6)
        np.testing.assert_allclose(two[name], factor * plain[name], rtol=1e-6)
