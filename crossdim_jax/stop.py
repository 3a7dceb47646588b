"""Stopping a training from outside without losing work."""

import signal
import sys
import threading
from typing import Any

import jax


class Interrupted(SystemExit):
    """SIGTERM or SIGINT came and the state is saved: running the same command goes on.

    The exit status is 75 (EX_TEMPFAIL, "try again"), unlike the 143 or 130 of a process that the
    signal killed: a scheduler may requeue on it, knowing that nothing is lost.
    """

    STATUS = 75

    def __init__(self, step: int):
        self.step = step
        super().__init__(self.STATUS)


class StopSignal:
    """Notices SIGTERM and SIGINT, so that the loop can save before it goes.

    A second SIGINT interrupts at once. Outside the main thread signals cannot be caught, and
    nothing is noticed. With many processes the runtime's own preemption notice is asked instead:
    it makes all of them stop after the same step.
    """

    def __init__(self):
        self._name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number, frame) -> None:
        del frame
        if number == signal.SIGINT and self._name == "SIGINT":
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name
        print(f"{self._name}: finishing the step, then saving", file=sys.stderr, flush=True)

    @property
    def noticed(self) -> bool:
        """Whether a signal has come to this process."""
        return self._name is not None

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self.noticed
