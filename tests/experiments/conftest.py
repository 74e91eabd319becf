"""A model small enough that a run takes a few seconds."""

import json
import math
import pathlib
import sys

import pytest

from experiments import config as configs
from experiments import data, models
from experiments.benchmark import peers
from experiments.launchers import job
from experiments.tasks import TASKS
from experiments.trainer import loop
from optlab import registry
from tests.helpers.servers import (  # noqa: F401, fixtures of several modules
    cluster,
    postgres,
)
from tests.helpers.synthetic_runs import runs  # noqa: F401, so is this

SMALL = {
    "model.width": 32,
    "model.layers": 2,
    "model.heads": 2,
    "model.hidden": 48,
    "task.context": 16,
    "task.eval_windows": 32,
    "train.batch_size": 8,
    "train.steps": 20,
    "train.eval_every": 10,
}


def small_arguments(**changes) -> list[str]:
    """Overrides of a small run; `train__steps=5` sets `train.steps`."""
    fields = SMALL | {name.replace("__", "."): v for name, v in changes.items()}
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture
def own_files():
    """Forgets in the end what a test's config files have registered."""
    registries = (registry._ENTRIES, models.MODELS, data.SOURCES, TASKS)
    before = [dict(known) for known in registries]
    yield
    for known, content in zip(registries, before, strict=True):
        known.clear()
        known.update(content)
    for name in [name for name in sys.modules if name.startswith("config_file_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def small():
    """Loads the demo's config at a small size, with changes."""
    return lambda **changes: configs.load(
        "configs/stdlib_lm.py", small_arguments(**changes)
    )[0]


@pytest.fixture(scope="package", autouse=True)
def _in_repository(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        yield


@pytest.fixture
def peer(monkeypatch):
    """optax's Muon in the registry, as the benchmark's command has it: its name."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    peers.register()
    return "optax_muon"


@pytest.fixture
def given():
    """Gives a suite its flags, as a command line would."""
    suites = []

    def give(own, **values):
        suites.append(own)
        own(["", *(f"--{name}={value}" for name, value in values.items())])

    yield give
    for own in suites:
        own.unparse_flags()
        for name in own:
            own[name].unparse()


@pytest.fixture
def stub(monkeypatch):
    """Stands for the training: writes the result that `outcome` gives for a rate."""
    calls = []

    def make(outcome):
        def train(config, workdir, *, overrides):
            del overrides
            rate = config.optimizer.learning_rate
            calls.append(rate)
            loss = outcome(rate)
            result = {
                "val_loss": loss if math.isfinite(loss) else None,
                "reason": "completed" if math.isfinite(loss) else "diverged",
                "steps": 10,
                "total_seconds": 5.0,
            }
            folder = pathlib.Path(workdir)
            folder.mkdir(exist_ok=True)
            task = TASKS[config.task.name](config)
            settings = {"config": config.to_dict(), "data_digest": task.digest}
            (folder / "config.json").write_text(json.dumps(settings))
            (folder / "result.json").write_text(json.dumps(result))
            return job.FINISHED[result["reason"]]

        monkeypatch.setattr(loop, "train", train)
        return calls

    return make
