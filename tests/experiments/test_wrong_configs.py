"""Wrong configs of every kind: one line each, no traceback, no file."""

import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import config as configs
from experiments.fields import FIELDS
from experiments.trainer import loop
from tests.experiments.conftest import SMALL

COSMOS = configs.base()
COSMOS.optimizer.name = "cosmos"
PATHS = [*FIELDS, *configs.default_kwargs(COSMOS)]
NAMES = st.sampled_from(PATHS) | st.sampled_from(
    ["optimizer.kwargs.rnak", "train.step", "modell.width", "seed.x", "", "a.b.c"]
)
VALUES = (
    st.integers(-(2**70), 2**70)
    | st.integers(-3, 3)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from(
        ["", "adam", "None", "True", "[1]", "{}", "1e3", "0x1", "'", "\n"]
    )
    | st.text(max_size=8)
)


def test_wrong_configs_are_one_line_each_and_leave_no_file(tmp_path, monkeypatch):
    """A config that is taken after all ends where the training would begin."""
    monkeypatch.setattr(loop._Run, "execute", lambda *_, **__: {"reason": "completed"})
    folder, refused = tmp_path / "run", set()

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=3))
    def attempt(pairs):
        words = [f"--config.{name}={value}" for name, value in SMALL.items()]
        words += ["--config.optimizer.name=cosmos", "--config.model.layers=1"]
        words += [f"--config.{name}={value}" for name, value in pairs]
        try:
            config, _ = configs.load("configs/stdlib_lm.py", words)
            loop.train(config, str(folder))
        except configs.UserError as error:
            message = str(error)
            assert message.startswith(("--config", "task.", "optimizer."))
            assert message.isprintable(), message
            assert not folder.exists(), message
            refused.add(tuple(words))
        else:
            shutil.rmtree(folder)

    attempt()
    assert len(refused) > 200
