"""Where the points of a sweep run.

`experiments.launchers.job` says what a launcher and a job are.
"""

from experiments.launchers.inline import Inline
from experiments.launchers.job import Launcher
from experiments.launchers.local import Local
from experiments.launchers.slurm import Slurm

# By their names in `--launcher`.
LAUNCHERS: dict[str, type[Launcher]] = {
    "inline": Inline,
    "local": Local,
    "slurm": Slurm,
}
