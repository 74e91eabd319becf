"""SIGINT, SIGTERM and SIGHUP as requests that the loop sees between steps."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "preempted",
    signal.SIGHUP: "hangup",
}
# A reason -> the exit status of a run that it stopped.
STOPPED = {reason: 128 + number for number, reason in _REASONS.items()}


class StopRequests:
    """Why the run is to stop; `reasons` are in the order in which they came."""

    def __init__(self):
        self.reasons: list[str] = []

    def at(self, step: int) -> bool:
        """Whether to stop after this step; of many processes, all stop at the same."""
        if jax.process_count() == 1:
            return bool(self.reasons)
        if multihost_utils.reached_preemption_sync_point(step):
            self.reasons.append("preempted")
        return bool(self.reasons)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Catches the signals while it is open; a second one of a kind ends the process.

    With many processes jax's own service hears SIGTERM and agrees on the step, and
    the others become SIGTERM. A SIGHUP that is ignored, as `nohup` does, stays so.
    """
    requests = StopRequests()
    alone = jax.process_count() == 1

    def remember(number, frame):
        del frame
        signal.signal(number, signal.SIG_DFL)
        if alone:
            requests.reasons.append(_REASONS[signal.Signals(number)])
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    caught = {signal.SIGINT, signal.SIGHUP} | ({signal.SIGTERM} if alone else set())
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        caught.remove(signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in caught}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
