"""Stopping a run from outside without losing work."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(SystemExit):
    """SIGTERM or SIGINT came and nothing is lost: running the same command goes on.

    The exit status is 75 (EX_TEMPFAIL, "try again"), unlike the 143 or 130 of a process that the
    signal killed: a scheduler may requeue on it.

    Attributes:
      step: of the training, whose state is saved; None outside of it.
    """

    STATUS = 75

    def __init__(self, step: int | None = None):
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
        if _in_main_thread() and jax.process_count() == 1:
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
            return multihost_utils.reached_preemption_sync_point(step)
        return self.noticed


@contextlib.contextmanager
def repeatable(what: str) -> Iterator[Callable[[], None]]:
    """Around work that can be made again: SIGTERM ends it with the status of `Interrupted`.

    Args:
      what: what is being done, for the message.

    Yields:
      a function to call between two pieces of the work. Of many processes, none stops: they would
      have to stop together.
    """
    came = threading.Event()

    def leave(*_) -> None:
        if not came.is_set():  # a handler may not use a buffer
            os.write(2, f"SIGTERM: stopped {what}; run the same command again\n".encode())
        came.set()
        raise Interrupted

    alone = jax.process_count() == 1 and _in_main_thread()
    before = signal.signal(signal.SIGTERM, leave) if alone else None
    try:
        # What a handler raises is lost where Python cannot pass it on, as within a `__del__`.
        yield lambda: leave() if came.is_set() else None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
