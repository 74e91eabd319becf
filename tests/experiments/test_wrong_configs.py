"""Wrong configs of every kind: one line each, no traceback, no file."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import config as configs
from experiments.fields import FIELDS
from experiments.trainer.program import Program
from tests.experiments.conftest import SMALL

PATHS = [*FIELDS, "optimizer.kwargs.rank", "optimizer.kwargs.b1"]
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


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=3))
def test_a_wrong_config_is_one_line(pairs):
    words = [f"--config.{name}={value}" for name, value in SMALL.items()]
    words += ["--config.optimizer.name=cosmos"]
    words += [f"--config.{name}={value}" for name, value in pairs]
    try:
        config, _ = configs.load("configs/stdlib_lm.py", words)
        Program(config)
    except configs.UserError as error:
        message = str(error)
        assert message.startswith(("--config", "task.", "optimizer."))
        assert message.isprintable(), message
