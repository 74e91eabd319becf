"""A trace of a few steps, for TensorBoard's profile page or Perfetto."""

import pathlib
from typing import Any

import jax

# The first steps are still warming up.
_SKIP, _STEPS = 3, 5


class Profiler:
    """Traces some early steps of a run into `profile/` of its folder.

    Args:
      folder: the run's.
      start: steps done before, or None to trace nothing.
    """

    def __init__(self, folder: pathlib.Path, start: int | None):
        self._folder = folder / "profile"
        self._first = None if start is None else start + 1 + _SKIP
        self._running = False

    def before(self, step: int) -> None:
        """Begins where it is time."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, values: Any) -> None:
        """Ends after the last step of the trace, once `values` are there."""
        if self._running and step == self._first + _STEPS - 1:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
