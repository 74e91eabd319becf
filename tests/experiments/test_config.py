import os
import pathlib
import subprocess
import sys

import optax
import pytest
from absl import flags

import optlab
from experiments import (
    command,
    demo,
    prepare,
    report,
    train,
)
from experiments import config as configs
from experiments.errors import UserError
from experiments.fields import FIELDS

FILE = "configs/stdlib_lm.py"


def load(*overrides):
    return configs.load(FILE, overrides)[0]


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("path", sorted(pathlib.Path("configs").glob("*.py")), ids=str)
def test_every_config_file_holds_every_field_and_only_those(path):
    config, _ = configs.load(str(path))
    flat = {name for name in configs.flatten(config) if ".kwargs" not in name}
    assert flat == set(FIELDS)
    assert config.is_locked


def test_kwargs_come_from_the_factory_and_take_overrides():
    config = load("--config.optimizer.name=cosmos", "--config.optimizer.kwargs.rank=8")
    assert config.optimizer.kwargs.rank == 8
    assert config.optimizer.kwargs.gamma == 0.2
    assert config.optimizer.kwargs.mu_dtype is None
    assert "learning_rate" not in config.optimizer.kwargs
    # The schedule's arguments change with its name, whichever comes first.
    config = load("--config.schedule.kwargs.phi=2", "--config.schedule.name=uba")
    assert config.schedule.kwargs.phi == 2.0
    assert "phi" not in load().schedule.kwargs


def test_every_registered_optimizer_fills_its_kwargs():
    for name in optlab.registry.names():
        assert load(f"--config.optimizer.name={name}").optimizer.name == name


def test_an_optimizer_from_outside_is_a_name_like_any_other(monkeypatch):
    def plain(learning_rate, *, damping: float | None = None, power: int = 2):
        del damping, power
        return optax.sgd(learning_rate)

    monkeypatch.setattr(optlab.registry, "_ENTRIES", dict(optlab.registry._ENTRIES))
    optlab.register("plain", plain)
    config = load(
        "--config.optimizer.name=plain", "--config.optimizer.kwargs.damping=3"
    )
    assert config.optimizer.kwargs.to_dict() == {"damping": 3.0, "power": 2}


def test_overrides_are_recorded_as_values():
    _, changed = configs.load(FILE, ["--config.train.steps=7", "--config.model.remat"])
    assert changed == {"train.steps": 7, "model.remat": True}


def test_arguments_are_parted():
    given = ["p", "--config=f", "--config.a=1", "--config.b", "2", "--noconfig.c", "-v"]
    overrides, rest = configs.split_arguments(given)
    assert overrides == ["--config.a=1", "--config.b=2", "--noconfig.c"]
    assert rest == ["p", "--config=f", "-v"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stps=3", ["train.stps", "no such field", "nearest: train.steps"]),
        ("optimiser.name=adamw", ["optimiser.name", "optimizer.name"]),
        ("train=3", ["--config.train", "no such field"]),
        ("train.steps=abc", ["train.steps", "'abc'", "int"]),
        ("train.steps=1.5", ["train.steps", "'1.5'", "int"]),
        ("train.steps=0", ["train.steps", "0", "1 or more"]),
        ("train.steps", ["train.steps", "''", "int"]),
        ("train.steps=\n", ["train.steps", r"'\n'", "int"]),
        ("model.width=big", ["model.width", "'big'", "int"]),
        ("model.tied=perhaps", ["model.tied", "'perhaps'", "bool"]),
        ("model.size=tini", ["model.size", "'tini'", "350M", "nearest: tiny"]),
        (
            "optimizer.name=cosmo",
            ["optimizer.name", "'cosmo'", "nearest: cosmos", "adamw"],
        ),
        ("optimizer.learning_rate=-1", ["optimizer.learning_rate", "above 0"]),
        ("optimizer.learning_rate=nan", ["optimizer.learning_rate", "finite"]),
        ("optimizer.kwargs.b3=1", ["optimizer.kwargs.b3", "kwargs.b"]),
        ("schedule.name=cosin", ["schedule.name", "'cosin'", "nearest: cosine"]),
        ("schedule.warmup_fraction=1", ["schedule.warmup_fraction", "0.99 or less"]),
        ("train.accumulate=3", ["train.accumulate", "divisor", "train.batch_size=16"]),
        ("task.eval_windows=33", ["task.eval_windows", "multiple of 32"]),
        ("train.fork_step=0", ["fork_step: only with train.fork_run"]),
        (
            "optimizer.gradient_samples=4",
            ["gradient_samples: only with optimizer.gradient=zeroth or forward"],
        ),
        (
            "optimizer.gradient_mu=0.1 optimizer.gradient=forward",
            ["gradient_mu: only with optimizer.gradient=zeroth"],
        ),
        ("faults.spike_scale=9", ["spike_scale: only with faults.spike_every"]),
        ("faults.outlier_scale=9", ["outlier_scale: only with faults.outliers"]),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(override, parts):
    with pytest.raises(UserError) as caught:
        load(*(f"--config.{word}" for word in override.split(" ")))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_wrong_file_is_one_line(tmp_path):
    cases = {
        "raise RuntimeError('first\\nsecond')": "RuntimeError: first",
        "def get_config(:": "SyntaxError",
        "x = 1": "get_config",
        "def get_config(): return 3": "no ConfigDict",
        "import ml_collections\n"
        "def get_config(): return ml_collections.ConfigDict()": "lacks",
    }
    for text, part in cases.items():
        path = tmp_path / "config.py"
        path.write_text(text)
        with pytest.raises(UserError, match=part) as caught:
            configs.load(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nearest: configs/stdlib_lm\.py"):
        configs.load("configs/stdlib_ml.py")


def test_a_files_own_kwargs_are_checked_and_belong_to_its_optimizer(tmp_path):
    text = (
        "from experiments import config\n"
        "def get_config():\n"
        "    c = config.base()\n"
        "    c.optimizer.kwargs = {{'{}': 0.8}}\n"
        "    return c\n"
    )
    path = tmp_path / "config.py"
    path.write_text(text.format("b1"))
    assert configs.load(str(path))[0].optimizer.kwargs.b1 == 0.8
    other, _ = configs.load(str(path), ["--config.optimizer.name=cosmos"])
    assert other.optimizer.kwargs.b1 == 0.95
    path.write_text(text.format("b7"))
    with pytest.raises(UserError, match=r"kwargs\.b7"):
        configs.load(str(path))


FROM_BASE = """
from experiments import config
import ml_collections
def get_config():
    c = config.base()
    {}
    return c
"""


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("c.train.steps = '7'", ["steps"]),
        ("c.train = 3", ["'train'", "(line 6)"]),
        ("c.train.update({'steps': None})", ["train.steps", "None", "int"]),
        ("c.train.steps = True", ["train.steps", "True", "int"]),
        ("c.train.stps = 3", ["train.stps", "nearest: train.steps"]),
        ("c.optimiser = {'name': 'adamw'}", ["optimiser.name", "no such field"]),
        ("c.optimizer.kwargs = {'b1': 'x'}", ["optimizer.kwargs.b1", "'x'", "float"]),
        ("c.optimizer.kwargs = {'b1': None}", ["kwargs.b1", "None", "float"]),
        ("c.optimizer.kwargs = {'b1': {'b': 1}}", ["optimizer.kwargs.b1.b"]),
        ("c.optimizer.kwargs = None", ["optimizer.kwargs", "no such field"]),
        ("c.optimizer.kwargs = [1]", ["'kwargs'", "(line 6)"]),
        (
            "c.optimizer.name = 'cosmo'",
            ["optimizer.name", "'cosmo'", "nearest: cosmos"],
        ),
        ("del c.seed", ["lacks seed"]),
        ("c = c.to_dict()", ["no ConfigDict, but a dict"]),
        ("c = None", ["no ConfigDict, but a NoneType"]),
        ("c = config.base", ["no ConfigDict, but a function"]),
        ("c[3] = 4", ["cannot be read"]),
        (
            "c = ml_collections.ConfigDict({**c.to_dict(), 'seed': [0]})",
            ["seed", "int"],
        ),
        ("c.model.z_loss = float('nan')", ["model.z_loss", "finite"]),
        ("c.seed = ml_collections.config_dict.required_placeholder(int)", ["required"]),
    ],
)
def test_a_files_wrong_field_is_one_line_that_names_it(tmp_path, line, parts):
    path = tmp_path / "config.py"
    path.write_text(FROM_BASE.format(line))
    with pytest.raises(UserError) as caught:
        configs.load(str(path))
    message = str(caught.value)
    assert message.isprintable()
    for part in ["--config", *parts]:
        assert part in message


def test_a_frozen_config_and_one_made_by_hand_are_configs(tmp_path):
    path = tmp_path / "config.py"
    for line in (
        "c.train.steps = 7; c = ml_collections.FrozenConfigDict(c)",
        "c.train.steps = 7; c = ml_collections.ConfigDict(c.to_dict())",
    ):
        path.write_text(FROM_BASE.format(line))
        config, changed = configs.load(
            str(path), ["--config.model.width=8", "--config.optimizer.weight_decay=0"]
        )
        assert config.train.steps == 7
        assert config.model.width == 8
        assert changed == {"model.width": 8, "optimizer.weight_decay": 0.0}
        assert config.is_locked


def test_none_sets_a_field_back_where_it_may_be_none():
    name = "--config.optimizer.name=cosmos"
    config, changed = configs.load(
        "configs/openwebtext_gpt2.py",
        [
            *("--config.task.path=none", "--config.model.tied=None", name),
            *("--config.model.width=8", "--config.model.width=none"),
            *("--config.model.heads=none", "--config.model.heads=2"),
            "--config.optimizer.kwargs.ns_dtype=none",
        ],
    )
    assert config.task.path is config.model.tied is config.model.width is None
    assert config.optimizer.kwargs.ns_dtype is None
    assert config.model.heads == 2
    assert changed["task.path"] is changed["model.width"] is None
    assert changed["model.heads"] == 2
    for field, kind in (
        ("train.steps", "int"),
        ("optimizer.kwargs.b1", "float"),
        ("model.remat", "bool"),
    ):
        with pytest.raises(UserError, match=f"{field}: given 'none'.*{kind}"):
            load(name, f"--config.{field}=none")
    assert load("--config.task.text_field=none").task.text_field == "none"


def test_the_home_folder_is_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    own = flags.FlagValues()
    folder = command.define_path("folder", "", own, default="runs")
    own(["", "--folder=~/a b"])
    assert folder.value == "/h/a b"
    for module, names in (
        (train, ["config", "workdir"]),
        (prepare, ["output", "tokenizer", "dataset"]),
        (report, ["output"]),
        (demo, ["workdir"]),
    ):
        for name in names:
            assert module._FLAGS[name].parser.parse("~/x") == "/h/x"
    config, changed = configs.load(
        FILE, ["--config.task.path=~/d", "--config.task.tokenizer=~/t.json"]
    )
    assert config.task.path == changed["task.path"] == "/h/d"
    assert config.task.tokenizer == "/h/t.json"


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--config=" + FILE], 2, "", "error: --workdir: missing"),
        (["--workdir=W"], 2, "", "error: --config: missing"),
        (["--config=" + FILE, "--wrkdir=W"], 2, "", "workdir"),
        (
            ["--config=" + FILE, "--workdir=W", "--config.model.heads=5"],
            2,
            "",
            "model.heads",
        ),
        (
            ["--config=" + FILE, "--print_config", "--config.train.steps", "9"],
            0,
            "steps: 9",
            "",
        ),
        (["--help"], 0, "--config.optimizer.learning_rate=", ""),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, status, out, err):
    workdir = tmp_path / "run"
    words = [word.replace("=W", f"={workdir}") for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert out in done.stdout
    if err:
        assert err in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not workdir.exists()


def test_a_momentum_has_two_names_and_one_value():
    for name, own in (("cosmos", "b1"), ("root", "momentum")):
        for asked in ("b1", "momentum"):
            word = f"--config.optimizer.kwargs.{asked}=0.5"
            config, changed = configs.load(
                FILE, [f"--config.optimizer.name={name}", word]
            )
            assert config.optimizer.kwargs[own] == 0.5
            assert changed[f"optimizer.kwargs.{own}"] == 0.5
    both = [f"--config.optimizer.kwargs.{x}=0.5" for x in ("b1", "momentum")]
    with pytest.raises(UserError, match="b1 and momentum are one argument"):
        configs.load(FILE, ["--config.optimizer.name=cosmos", *both])
    with pytest.raises(UserError, match="no such field"):
        configs.load(FILE, ["--config.optimizer.name=lion", both[1]])
