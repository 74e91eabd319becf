"""Trains one model with one optimizer: a config file, overrides, a folder.

    python -m experiments.train --config=configs/stdlib_lm.py --workdir=runs/a \\
        --config.optimizer.name=cosmos --config.optimizer.learning_rate=2e-3

Exit status: 0 completed, 2 bad input, 3 diverged, 4 the folder is in use; 129, 130 and
143 stopped by SIGHUP, SIGINT and SIGTERM after a checkpoint, from which the same
command goes on.
"""

import jax
from absl import flags

from experiments import command, field_help
from experiments import config as configs
from experiments.errors import UserError
from experiments.trainer import loop

_FLAGS = flags.FlagValues()
_CONFIG = command.define_path("config", "config file, such as configs/*.py", _FLAGS)
_WORKDIR = command.define_path("workdir", "the run's folder, made if missing", _FLAGS)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "remove an earlier run's files first", flag_values=_FLAGS
)
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "print the config and leave", flag_values=_FLAGS
)
_EVALUATE = flags.DEFINE_bool(
    "evaluate",
    False,
    "print the validation metrics of the newest checkpoint and leave",
    flag_values=_FLAGS,
)
_RESET_OPTIMIZER = flags.DEFINE_bool(
    "reset_optimizer",
    False,
    "go on from the newest checkpoint with a new optimizer state; optimizer, "
    "schedule and steps may be others (give it once, not when the run goes on again)",
    flag_values=_FLAGS,
)
_EXTEND = flags.DEFINE_bool(
    "extend",
    False,
    "go on to the larger train.steps that the config has now, where the schedule had "
    "given the steps that were made the same rates (constant, or wsd before its decay)",
    flag_values=_FLAGS,
)
_CHANGE_SCHEDULE = flags.DEFINE_bool(
    "change_schedule",
    False,
    "with --extend: go on though the rates of the steps that were made had been others",
    flag_values=_FLAGS,
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "trace a few steps into profile/", flag_values=_FLAGS
)
_MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "one of many processes that train together; TPU pods, SLURM, MPI and Kubernetes "
    "are found by themselves, elsewhere the next three say it",
    flag_values=_FLAGS,
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0", flag_values=_FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "how many there are", lower_bound=1, flag_values=_FLAGS
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "which one this is", lower_bound=0, flag_values=_FLAGS
)


def _join_processes() -> None:
    """Finds the other processes, before anything asks for devices."""
    options = {
        "coordinator_address": _COORDINATOR.value,
        "num_processes": _NUM_PROCESSES.value,
        "process_id": _PROCESS_ID.value,
    }
    if not _MULTIHOST.value:
        for name, value in options.items():
            if value is not None:
                raise UserError(f"--{name}: only with --multihost")
        return
    try:
        jax.distributed.initialize(**options)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--multihost: {reason}") from error
    if jax.default_backend() == "cpu":
        # A program from the cache and one just compiled, as two processes may have
        # them, do not send in the same order there (jaxlib 0.10.2).
        jax.config.update("jax_enable_compilation_cache", False)


def _check_flags() -> None:
    """Refuses flags that do not go together."""
    if _CHANGE_SCHEDULE.value and not _EXTEND.value:
        raise UserError("--change_schedule: only with --extend")
    apart = (
        (_EXTEND, (_OVERWRITE, _RESET_OPTIMIZER, _EVALUATE)),
        (_RESET_OPTIMIZER, (_OVERWRITE,)),
        (_EVALUATE, (_OVERWRITE, _RESET_OPTIMIZER, _PROFILE)),
    )
    for flag, others in apart:
        for other in others:
            if flag.value and other.value:
                raise UserError(f"--{flag.name}: not with --{other.name}")


def main(positional: list[str], overrides: list[str]) -> int:
    """Trains, and returns the exit status."""
    command.no_arguments(positional)
    command.require(config=_CONFIG.value)
    _check_flags()
    _join_processes()
    config, changed = configs.load(_CONFIG.value, overrides)
    if _PRINT_CONFIG.value:
        print(config)
        return 0
    command.require(workdir=_WORKDIR.value)
    if _EVALUATE.value:
        return loop.evaluate(config, _WORKDIR.value)
    return loop.train(
        config,
        _WORKDIR.value,
        overrides=changed,
        overwrite=_OVERWRITE.value,
        reset_optimizer=_RESET_OPTIMIZER.value,
        extend=_EXTEND.value,
        change_schedule=_CHANGE_SCHEDULE.value,
        profile=_PROFILE.value,
    )


def _fields(overrides: list[str]) -> str:
    return field_help.describe(_CONFIG.value, overrides)


if __name__ == "__main__":
    command.run(main, _FLAGS, epilogue=_fields)
