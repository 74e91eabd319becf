"""Trains one model with one optimizer: a config file, overrides, a folder.

    python -m experiments.train --config=configs/stdlib_lm.py --workdir=runs/a \\
        --config.optimizer.name=cosmos --config.optimizer.learning_rate=2e-2

Exit status: 0 completed, 2 bad input, 3 diverged, 4 the folder is in use, 130 and 143
stopped by SIGINT and SIGTERM after a checkpoint, from which the same command goes on.
"""

from absl import flags

from experiments import command
from experiments import config as configs
from experiments.trainer import loop

_FLAGS = flags.FlagValues()
_CONFIG = flags.DEFINE_string(
    "config", None, "config file, such as configs/*.py", flag_values=_FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "the run's folder, made if missing", flag_values=_FLAGS
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "remove an earlier run's files first", flag_values=_FLAGS
)
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "print the config and leave", flag_values=_FLAGS
)


def main(positional: list[str], overrides: list[str]) -> int:
    """Trains, and returns the exit status."""
    command.no_arguments(positional)
    command.require(config=_CONFIG.value)
    config, changed = configs.load(_CONFIG.value, overrides)
    if _PRINT_CONFIG.value:
        print(config)
        return 0
    command.require(workdir=_WORKDIR.value)
    return loop.train(
        config, _WORKDIR.value, overrides=changed, overwrite=_OVERWRITE.value
    )


if __name__ == "__main__":
    command.run(main, _FLAGS, epilogue=f"Fields:\n{configs.describe()}")
