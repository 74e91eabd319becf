"""What `--help` and the documentation say of fields, arguments and sweeps."""

import inspect
import pathlib
import re

import pytest

import optlab
from experiments import choices, command, look, parts, schedules, sweep
from experiments.arguments import literal, meanings
from experiments.benchmark import __main__ as benchmark
from experiments.errors import UserError
from experiments.field_help import describe
from experiments.inside.measures import MEASURES
from experiments.launchers import LAUNCHERS, Local, local
from optlab.options import meanings as entries_of


def squeezed(text):
    return " ".join(text.split())


def test_every_argument_that_a_choice_offers_is_explained():
    for field, names in (
        ("optimizer.name", optlab.registry.names()),
        ("schedule.name", schedules.SCHEDULES),
    ):
        for name in names:
            said = meanings(choices.factory(field, name))
            for argument in choices.arguments(field, name).by_name:
                assert said.get(argument), f"{name}: {argument}"


def test_a_docstring_of_anyone_is_read():
    def method(rate, width, depth, mode, *, rest):
        """Does it.

        Args:
            rate (float: above 0): of it,
                also: with a colon.

            width, depth: how large.
            mode: one of
                first: this;
                second: that.
            **options: not for this one.

        Returns:
            rest: is no argument.
        """

    assert meanings(method) == {
        "rate": "of it, also: with a colon.",
        **dict.fromkeys(("width", "depth"), "how large."),
        "mode": "one of first: this; second: that.",
        "options": "not for this one.",
    }
    kept = inspect.signature(lambda depth, rate: 0)
    text = entries_of(method.__doc__, kept)
    assert text == (
        "rate (float: above 0): of it,\n    also: with a colon.\n"
        "width, depth: how large.\n"
    )


def test_help_has_the_values_and_meanings_of_what_is_chosen():
    words = ["--config.optimizer.name=cosmos", "--config.optimizer.kwargs.rank=7"]
    said = describe("configs/digits.py", [*words, "--config.schedule.name=uba"])
    for part in (
        "--config.optimizer.name=cosmos\n",
        "--config.task.data=digits\n",
        "Arguments of optimizer.name=cosmos\n",
        "--config.optimizer.kwargs.rank=7\n      of the basis, cut to the smaller side",
        "--config.optimizer.kwargs.adam_b1=0.9\n      decay of Adam's momentum on the",
        "--config.schedule.kwargs.phases=1\n      how many times the fall is repeated.",
        "Arguments of model.name=mlp: none",
    ):
        assert part in said, part
    for name in optlab.registry.names():
        assert name in said
    assert all(len(line) <= 88 or "=" in line for line in said.splitlines())
    # A config that cannot be read is told, and the rest of the help with it.
    said = describe("configs/digit.py")
    assert "nearest: configs/digits.py" in said
    assert "Arguments of optimizer.name=adamw" in said


def test_sweep_files_and_launchers_are_explained_in_both_places(given):
    page = squeezed(pathlib.Path("docs/sweeps.md").read_text())
    given(sweep._FLAGS)
    help_text = sweep._help([])
    for key, said in parts.KEYS.items():
        assert f"| `{key}` | {said} |" in page
        assert f"\n  {key}\n" in help_text
        assert squeezed(said) in squeezed(help_text)
    assert set(parts.KEYS) == set(parts.Part._fields)
    given(sweep._FLAGS, sweep="configs/sweeps/proxies.py")
    help_text = sweep._help(
        ["--config.optimizer.name=soap", "--config.schedule.name=uba"]
    )
    assert "Fields, with the values of configs/stdlib_lm.py" in help_text
    assert "--config.schedule.kwargs.phi=1.0" in help_text
    assert "--config.optimizer.kwargs.precondition" in help_text
    for name, launcher in LAUNCHERS.items():
        assert f"| `{name}` |" in page
        assert f"--launcher={name}" in help_text
        for option in launcher.OPTIONS or ():
            assert f"`{option}=" in page
            assert f"\n  {option}\n" in help_text
    page = pathlib.Path("docs/run_schedules.md").read_text()
    for name in schedules.SCHEDULES:
        for argument in ("", *choices.arguments("schedule.name", name).by_name):
            row = re.search(rf"^\|.*`{name}`.*$", page, re.M)[0]
            assert f"`{argument or name}`" in row


def test_flags_are_shown_as_they_are_given():
    said = command._help("", look._FLAGS, "")
    assert f"  --what={','.join(MEASURES)}\n" in said and "--steps=\n" in said
    # Suites share their flags; each says whose it is.
    for name in benchmark._FLAGS:
        whose = re.sub(r"^<.*?>: ", "", benchmark._FLAGS[name].help).partition(": ")[0]
        named = set(whose.split(", ")) <= set(benchmark.SUITES)
        assert named or name in ("suite", "out"), name


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"launcher_options": "gpus=2"}, "gpus: no option of --launcher=inline.*none"),
        (
            {"launcher": "local", "launcher_options": "gpu=2"},
            "gpu: no option of --launcher=local, allowed gpus, threads .nearest: gpus.",
        ),
        ({"launcher": "local", "launcher_options": "gpus"}, "'gpus', allowed name=va"),
        ({"launcher": "local", "slurm": "time=3"}, "--slurm: .* --launcher is local"),
        (
            {"launcher": "slurm", "slurm": "time=3", "launcher_options": "time=4"},
            "--launcher_options: time is given twice",
        ),
    ],
)
def test_wrong_launcher_options_are_one_line(given, flags, part):
    given(sweep._FLAGS, sweep="x", **flags)
    with pytest.raises(UserError, match=part):
        sweep._launcher_options()


def test_each_launcher_gets_its_options(given, monkeypatch, tmp_path):
    for flags, expected in (
        ({"launcher": "slurm", "slurm": "time=3"}, {"time": 3}),
        (
            {"launcher": "slurm", "launcher_options": "time=3,partition=a=b"},
            {"time": 3, "partition": "a=b"},
        ),
    ):
        given(sweep._FLAGS, sweep="x", **flags)
        assert sweep._launcher_options() == expected
        for name in flags:
            sweep._FLAGS[name].unparse()
    for options, part in (
        ({"gpus": 1}, "gpus: given 1, allowed an integer, at least --workers=2"),
        ({"gpus": "two"}, "gpus: given 'two', allowed an integer, at least"),
        ({"threads": 2}, "threads: given 2, allowed 0 or 1"),
    ):
        with pytest.raises(UserError, match=part):
            Local(2, tmp_path, options)


def test_workers_have_a_gpu_each(monkeypatch, tmp_path):
    seen, ended = [], set()

    class Stub:
        def __init__(self, words, log, variables):
            del words, log
            self.gpu = variables["CUDA_VISIBLE_DEVICES"]
            self.flags = variables.get("XLA_FLAGS", "")
            seen.append(self)

        def status(self):
            return 0 if self in ended else None

    point = type("Point", (), {"name": "p"})
    monkeypatch.setattr(local, "Process", Stub)
    monkeypatch.setattr(local, "command", lambda *_: [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    with pytest.raises(UserError, match="gpus: given 5, CUDA_VISIBLE_DEVICES is 4,6,7"):
        Local(2, tmp_path, {"gpus": 5})
    launcher = Local(2, tmp_path, {"gpus": 2, "threads": 1})
    launcher.start([point, point], tmp_path, tmp_path)
    ended.add(seen[0])
    launcher.start([point], tmp_path, tmp_path)
    assert [one.gpu for one in seen] == ["4", "6", "4"]
    assert all("multi_thread_eigen=false" in one.flags for one in seen)


def test_words_of_any_argument_have_types():
    for text, value in {
        "3": 3,
        "-0.5": -0.5,
        "1e-3": 1e-3,
        "true": True,
        "False": False,
        "none": "none",
        "bfloat16": "bfloat16",
        "(1, 2)": "(1, 2)",
        "": "",
        "1 +": "1 +",
    }.items():
        assert literal(text) == value
        assert type(literal(text)) is type(value)
