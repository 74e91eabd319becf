"""What sweep files may hold, and what is said of the others."""

import os
import random

import numpy as np
import pytest

from experiments import points, sweep
from experiments.errors import UserError

RATE = "optimizer.learning_rate"
GOOD = {
    "config": "configs/digits.py",
    "overrides": {"train.steps": 10},
    "axes": {RATE: [0.001, 0.01]},
    "design": "grid",
    "seeds": [0, 1],
    "name": "one",
}
AXES = "axes: given .*"
WRONG = {
    "None": "returns None, allowed a dictionary or a list",
    "3": "returns 3, allowed a dictionary",
    "[None]": "returns part 0: None, allowed a dictionary",
    "[]": "has no points",
    "{}": "config: missing",
    "GOOD | {1: 2}": "1: no such field, allowed config",
    "GOOD | {'seed': [3]}": "seed: no such field.*nearest: seeds",
    "GOOD | {'config': None}": "config: given None, allowed the path",
    "GOOD | {'config': 'configs'}": "directory",
    "GOOD | {'seeds': 3}": "seeds: given 3, allowed a list of integers, 0 or more",
    "GOOD | {'seeds': [-1]}": "seeds: given .-1., allowed a list of integers",
    "GOOD | {'seeds': [True]}": "seeds: given .True., allowed",
    "GOOD | {'seeds': '01'}": "seeds: given '01', allowed",
    "GOOD | {'seeds': []}": "has no points",
    "GOOD | {'axes': [RATE]}": AXES + "allowed a dictionary",
    "GOOD | {'axes': {RATE: 3}}": AXES + "learning_rate: allowed a list",
    "GOOD | {'axes': {RATE: '0.1'}}": AXES + "learning_rate: allowed a list",
    "GOOD | {'axes': {RATE: {0.1, 0.2}}}": AXES + "learning_rate: allowed a list",
    "GOOD | {'axes': {RATE: [math.nan]}}": AXES + "nan is not finite",
    "GOOD | {'axes': {RATE: [10**400]}}": AXES + "beyond 64 bits",
    "GOOD | {'axes': {RATE: [{}]}}": AXES + "{} is no number",
    "GOOD | {'axes': {'seed': [1, 2]}}": AXES + "belongs to seeds",
    "GOOD | {'overrides': {'seed': 1}}": "overrides: given .*belongs to seeds",
    "GOOD | {'overrides': {'a=b': 1}}": "overrides: given .*'a=b' is no field",
    "GOOD | {'overrides': {'train.steps': 1.5}}": "train.steps: given '1.5'",
    "GOOD | {'overrides': {'a': 'b\\nc'}}": "overrides: given .*printable",
    "GOOD | {'axes': {RATE: [0.1] * 9999, 'x': [1, 2]}}": "39996 points, allowed 10000",
    "GOOD | {'design': ['grid']}": "design: given .'grid'., allowed grid",
    "GOOD | {'pruning': 3}": "pruning: given 3, allowed first",
    "GOOD | {'pruning': {'first': 0, 'factor': 2}}": "pruning: given .*allowed first",
    "GOOD | {'pruning': {'first': 2, 'factor': 1}}": "pruning: given .*allowed first",
    "GOOD | {'name': 3}": "name: given 3, allowed a string",
    "GOOD | {'trials': -1}": "trials: given -1, allowed an integer, 0 to 10000",
    "GOOD | {'trials': 3}": "trials: only with design halton, and design is grid",
    "CENTER | {'skip': 3}": "skip: only with design halton, and design is one_at_a_",
    "GOOD | {'axes': {RATE: (1e-4, 1e-2, 'log')}}": AXES + "needs design halton",
    "CENTER | {'axes': {RATE: [0, 2, 'linear']}}": AXES + "needs design halton",
    "GOOD | {'overrides': {RATE: 0.1}}": "overrides: .*rate is a field of axes",
    "HALTON | {'overrides': {RATE: 0.1}}": "overrides: .*rate is a field of axes too",
    "GOOD | {'axes': {NAME: ['adamw'], 'optimizer.kwargs.ns_steps': [5]}}": (
        "ns_steps: no such .*in the point --config.optimizer.name=adamw "
        "--config.optimizer.kwargs.ns_steps=5"
    ),
    "HALTON | {'trials': 0}": "trials: given 0, allowed 1 or more",
    "HALTON | {'skip': 10**9}": "skip: given 1000000000, allowed an integer, 0 to",
    "HALTON | {'axes': {RATE: (0, 1, 'log')}}": AXES + "above 0 with log",
    "HALTON | {'axes': {RATE: (0.2, 0.1, 'log')}}": AXES + "allowed low below high",
    "HALTON | {'axes': {RATE: (0.1, 0.2, 'lag')}}": AXES + "'lag' is no scale",
    "HALTON | {'axes': {RATE: (-1e308, 1e308, 'linear')}}": AXES + "that a float holds",
    "HALTON | {'axes': {RATE: []}}": AXES + "allowed values",
    "CENTER | {'axes': {'train.stps': [3]}}": "train.stps: no such field",
}


def written(folder, text):
    path = folder / "swept.py"
    head = f"import math\nRATE = {RATE!r}\nGOOD = {GOOD!r}\n"
    head += "NAME = 'optimizer.name'\n"
    head += "HALTON = GOOD | {'design': 'halton', 'axes': {RATE: (0.1, 0.2, 'log')}}\n"
    head += "HALTON['trials'] = 2\n"
    head += "PRUNED = GOOD | {'pruning': {'first': 2, 'factor': 2}}\n"
    head += "CENTER = GOOD | {'design': 'one_at_a_time'}\n"
    path.write_text(f"{head}\ndef get_sweep():\n    return {text}\n")
    return str(path)


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_sweep_is_one_line_that_names_the_field(tmp_path, text):
    with pytest.raises(UserError, match=WRONG[text]) as caught:
        points.load(written(tmp_path, text))
    assert str(caught.value).startswith(("--sweep: ", "--config"))
    assert str(caught.value).isprintable()


def test_what_a_sweep_varies_is_not_set_for_all_points(tmp_path):
    for text, field in (("GOOD", RATE), ("GOOD", "seed"), ("CENTER", RATE)):
        with pytest.raises(UserError, match=f"--config.{field}: the sweep gives it"):
            points.load(written(tmp_path, text), [f"--config.{field}=1"])
    one = written(tmp_path, "GOOD | {'seeds': [3]}")
    assert [x.config.seed for x in points.load(one, ["--config.seed=1"])] == [1, 1]


@pytest.mark.parametrize(
    "case",
    [
        ("PRUNED", {}, "--sweep: one: pruning: not with --launcher=inline"),
        ("GOOD", {"hang_seconds": 9}, "--hang_seconds: not with --launcher=inline"),
        ("GOOD", {"workers": 2}, "--workers: given 2, --launcher=inline has 1"),
    ],
)
def test_what_the_launcher_cannot_do_is_refused(tmp_path, monkeypatch, given, case):
    text, flags, said = case
    monkeypatch.setattr(sweep, "cost", lambda *_: "")
    path = written(tmp_path, text)
    given(sweep._FLAGS, sweep=path, workdir=tmp_path / "w", **flags)
    with pytest.raises(UserError, match=said):
        sweep.main([], [])
    assert not (tmp_path / "w").exists()


def test_numpys_arrays_and_numbers_are_lists_and_numbers(tmp_path):
    path = tmp_path / "swept.py"
    path.write_text(
        "import numpy as np\n\ndef get_sweep():\n    return {\n"
        "        'config': 'configs/digits.py',\n"
        f"        'axes': {{{RATE!r}: np.logspace(-3, -1, 3)}},\n"
        "        'overrides': {'train.steps': np.int64(7)},\n"
        "        'seeds': range(2),\n    }\n"
    )
    found = points.load(str(path))
    rates = [point.overrides[RATE] for point in found]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-2, 1e-2, 1e-1, 1e-1])
    assert {point.config.train.steps for point in found} == {7}


# What a slip of the finger may leave in a place.
_JUNK = (
    *(None, 0, -1, 3, 10**30, 0.5, float("nan"), float("inf"), True, "", "x", "grid"),
    *("halton", "one_at_a_time", "a\nb", "log", "configs/none.py", b"x", (), [], {}),
    *([0], [0, 1], ["x"], (0.1, 0.2, "log"), (0, 1, "log"), [[1]], [None], {"x": 1}),
    *({RATE: 3}, {RATE: []}, {RATE: (0.1, 0.2, "log")}, {RATE: [0.1, "x"]}, {1: [2]}),
    *({"train.steps": [1, 2.5]}, {"first": 1}, {"first": 1, "factor": "x"}, range(3)),
    *({"optimizer.name": ["adamw", "x"]}, {"optimizer.kwargs.b1": [2.0]}, {"": [1]}),
)


def _mutated(generator):
    """A part in which some places hold something else."""
    part = dict(GOOD)
    for _ in range(generator.randint(1, 3)):
        junk = generator.choice(_JUNK)
        how = generator.randrange(5)
        field = generator.choice(list(GOOD))
        if how == 0:
            part.pop(field, None)
        elif how == 1:
            part["axes"] = {generator.choice([RATE, "train.steps", "x"]): junk}
        elif how == 2:
            part["overrides"] = {generator.choice([RATE, "train.steps", "x"]): junk}
        else:
            part[field] = junk
    return generator.choice([part, part, part, [part], [part, part], junk])


def test_no_sweep_file_is_a_traceback_or_leaves_a_file(tmp_path, monkeypatch, given):
    generator = random.Random(0)
    config = os.path.abspath("configs/digits.py")
    monkeypatch.setattr(sweep, "cost", lambda *_: "")
    monkeypatch.chdir(tmp_path)
    refused = 0
    given(sweep._FLAGS, sweep="swept.py", dry_run=True)
    for number in range(100):
        text = repr(_mutated(generator)).replace("configs/digits.py", config)
        head = "nan, inf = float('nan'), float('inf')\n"
        path = tmp_path / "swept.py"
        path.write_text(f"{head}def get_sweep():\n    return {text}\n")
        try:
            assert sweep.main([], []) == 0
        except UserError as error:
            refused += 1
            assert error.status == 2
            assert str(error).isprintable(), (number, text)
        assert [found.name for found in tmp_path.iterdir()] == ["swept.py"]
    assert 60 <= refused < 100
