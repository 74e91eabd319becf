"""Where the points of a sweep run.

A launcher has `OPTIONS`, what it takes in `--launcher_options` by name (None: another
program knows), `slots`, how many points it takes at once, `workers`, how many of them
run at once, and `start(points, folder, cache) -> list[Job]`, one job a point, which
trains in `folder / point.name`. A job has `status()`, None until it has ended and the
exit status of `experiments.train` then, and `stop()`, which lets it write a checkpoint
and end.
"""

from experiments.launchers.inline import Inline
from experiments.launchers.local import Local
from experiments.launchers.slurm import Slurm

# Name in `--launcher` -> (workers, folder of the sweep, options) -> launcher.
LAUNCHERS = {"inline": Inline, "local": Local, "slurm": Slurm}
