"""Wrappers around a run's optimizer: how they are named, and one run in all of them."""

import json

import numpy as np
import pytest

from experiments import config as configs
from experiments import parts, wrappers
from experiments.trainer import loop
from experiments.trainer.program import make_program

ALL = "normalize_neurons, cautious, small_state, split_weights(bits=16)"
SKIPS = "skip_spikes(watch=loss, window=4, factor=0.1)"


def test_words_stand_for_wrappers_and_their_arguments():
    found = wrappers.parse("small_state(dtype=bfloat16), skip_spikes(factor=3.5)")
    assert found == [
        ("small_state", {"dtype": "bfloat16"}),
        ("skip_spikes", {"factor": 3.5}),
    ]
    assert wrappers.parse("") == []
    assert wrappers.needs("cautious, skip_spikes") == ()
    assert wrappers.needs("skip_spikes(watch=both)") == ("value",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cautoius", r"'cautoius', allowed .* \(nearest: cautious\)"),
        ("cautious, cautious", "cautious is given twice"),
        ("cautious, hyperball", "hyperball must come first"),
        ("hyperball, normalize_neurons", "normalize_neurons, hyperball must come"),
        ("skip_spikes(wach=loss)", r"no argument 'wach'.* \(nearest: watch\)"),
        ("hyperball(learning_rate=1)", "no argument 'learning_rate'"),
        *((bad, "given .*, allowed names and arguments") for bad in ("a b", "1", "]")),
        *((bad, "allowed names") for bad in ("cautious(3)", "cautious(rescale=a.b)")),
        ("cautious(**x)", "no argument None"),
        *(
            (
                f"small_state({name}={bad})",
                f"{name}: given .*, allowed a tuple of names",
            )
            for name in ("first_moments", "second_moments")
            for bad in ("mu", "3", "(1,)", "None")
        ),
    ],
)
def test_words_that_name_no_wrapper_are_one_line(words, said):
    with pytest.raises(configs.UserError, match=f"optimizer.wrappers: .*{said}"):
        configs.load(None, [f"--config.optimizer.wrappers={words}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("skip_spikes(factor=0)", "wrappers: skip_spikes: factor"),
        ("skip_spikes(watch=[1])", r"skip_spikes: watch must be .*: \[1\]"),
        ("small_state(dtype=int4)", "wrappers: small_state: dtype"),
        ("cosmos_h hyperball", "there is none of optimizer.name=cosmos_h"),
        ("adahessian split_weights", None),
        ("soap hyperball, skip_spikes(watch=both)", None),
    ],
)
def test_what_cannot_be_had_is_one_line_and_the_rest_is_traced(small, words, said):
    *name, around = words.split(" ", 1)
    config = small(
        optimizer__name=name[0] if name and "=" not in name[0] else "adamw",
        optimizer__wrappers=around if name and "=" not in name[0] else words,
        train__diagnostics_every=5,
        train__accumulate=2,
    )
    if said is None:
        make_program(config)
        return
    with pytest.raises(configs.UserError, match=said):
        make_program(config)


def test_rates_of_groups_do_not_go_with_directions(small):
    """They would be factors of the rate there."""
    for name in wrappers.ON_DIRECTIONS:
        config = small(
            optimizer__name="lanton",
            optimizer__wrappers=name,
            optimizer__kwargs__vector_learning_rate=0.1,
        )
        said = f"kwargs.vector_learning_rate: not with {name}"
        with pytest.raises(configs.UserError, match=said):
            make_program(config, trace=False)


def jumps(losses, window, factor):
    """How many of the losses are above the bound of those before them."""
    count = 0
    for i, loss in enumerate(losses):
        past = np.asarray(losses[max(0, i - window) : i], np.float32)
        if len(past) >= max(2, window // 2):
            spread = max(past.std(), abs(past.mean()) / 100)
            count += loss > past.mean() + factor * spread
    return count


def test_a_run_in_all_wrappers_learns_and_skips_by_its_loss(small, tmp_path):
    config = small(
        optimizer__name="cosmos",
        optimizer__learning_rate=0.02,
        optimizer__wrappers=f"{ALL}, {SKIPS}",
        optimizer__kwargs__rank=4,
        train__log_every=1,
    )
    assert loop.train(config, str(tmp_path)) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records = [record for record in records if "loss" in record]
    losses = [record["loss"] for record in records]
    assert losses[-1] < losses[0] - 0.3
    skipped = [record["skipped_steps"] for record in records]
    expected = [jumps(losses[: i + 1], 4, 0.1) for i in range(len(losses))]
    assert skipped == expected and 0 < skipped[-1] < len(losses) / 2
    assert {record["scaled_steps"] for record in records} == {0}
    # A skipped step leaves the weights.
    still = np.diff([0, *skipped]) == 1
    sizes = np.asarray([record["update_rms"] for record in records])
    assert (sizes[still] == 0).all() and (sizes[~still] > 0).all()


def test_the_sweep_has_every_optimizer_in_every_wrapper():
    kinds, named = {}, set()
    for part in parts.read("configs/sweeps/wrappers.py"):
        optimizer, wrapper, _ = part.name.split(", ")
        rates, seeds = kinds.setdefault((optimizer, wrapper), (set(), set()))
        rates.update(part.axes["optimizer.learning_rate"])
        seeds.update(part.seeds)
        words = part.overrides.get("optimizer.wrappers", "")
        named |= {wrapper.name for wrapper in wrappers.parse(words)}
    assert len(kinds) == 5 * 9
    assert all((len(r), len(s)) == (5, 3) for r, s in kinds.values())
    assert named == set(wrappers.WRAPPERS)
