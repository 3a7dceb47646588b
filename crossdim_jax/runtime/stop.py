"""SIGTERM and Ctrl-C, answered at once whatever the program is doing.

Python runs a signal's handler in the main thread, between two instructions: while XLA compiles, for
minutes, none runs. Here a thread of its own learns of every signal (`signal.set_wakeup_fd`) and
ends the program in the way that the main thread's current `Phase` says.

With several processes a signal to one stops all. They go through the same phases in the same order
and count them. Each stays in its phase once it learns of the stop, and notes its number where all
can read it; when all have, those behind go on to the phase of the foremost, and all leave in that
one, or in the first after it that can be left. Imports nothing heavy: it is installed first of all.
"""

import atexit
import contextlib
import dataclasses
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from crossdim_jax.errors import CrossdimError

AGAIN = 75  # EX_TEMPFAIL, "try again": a scheduler may requeue on it
POLL_S = 0.5  # between two looks at the notes of other processes
BRIEFLY_S = 2.0  # for what is done before leaving and may hang, such as a last message
LOST_S = 10.0  # in which a process that has something to save would have told so
TOGETHER_S = 60.0  # for all processes to be ready to leave, once this one is


class Interrupted(SystemExit):
    """The end of a program that notices stops but has not installed their answers: see `notice`.

    Attributes:
      step: of the training, whose state is saved; None outside of it.
    """

    def __init__(self, status: int, step: int | None = None):
        self.step = step
        super().__init__(status)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Answer to a stop while the main thread is in this phase.

    Attributes:
      says: follows the signal's name in the message that is printed at once.
      status: of the exit; None: 128 + the signal's number, as of a process that it killed.
      save: called before the program ends, from another thread: the main thread may still compute,
        but changes nothing that `save` reads. Returns the step that was saved.
      waits: the program cannot be left here; it is in the next phase that does not wait.
    """

    says: str
    status: int | None = None
    save: Callable[[], int] | None = None
    waits: bool = False

    @property
    def free(self) -> bool:
        """True if the program can be left without another process."""
        return not self.waits and self.save is None


START = Phase("stopped; nothing was to be saved")
FAILING = Phase("stopped; an error had ended the program already")
BUSY = Phase("finishing the step, then saving", waits=True)


def repeatable(what: str) -> Phase:
    """The phase of work that the same command makes again, or goes on with."""
    return Phase(f"stopped {what}; run the same command again", AGAIN)


class Notes(Protocol):
    """Short texts that all processes of a run can read; `index` of `count` is this one."""

    index: int
    count: int

    def put(self, name: str, text: str) -> None:
        """Writes a note, in place of an older one of that name."""

    def all(self, folder: str) -> Mapping[str, str]:
        """The notes under `folder/`; raises nothing: none if they cannot be read."""


class Program:
    """The phases of a program, and its end.

    Args:
      leave: ends the process with a status, whatever other threads do.
    """

    def __init__(self, leave: Callable[[int], Any] = os._exit):
        self._leave = leave
        self._changed = threading.Condition()  # guards all that follows
        self._phase, self._number = START, 0
        self._signal: signal.Signals | None = None
        self._interrupts = 0
        self._until: int | None = None  # the phase that has to be reached, once that is known
        self._over = False  # the main thread ends the process by itself
        self._answers = False
        self._notes: Notes | None = None
        self._endings: list[Callable[[], None]] = []

    def install(self) -> None:
        """Answers SIGTERM and SIGINT from now on. For the main thread of a program, at its top."""
        read, write = os.pipe()
        os.set_blocking(write, False)

        def wake() -> int:
            return signal.set_wakeup_fd(write, warn_on_full_buffer=False)

        def handle(number, frame) -> None:  # without a handler, there would be no wake-up
            if wake() != write:  # an event loop of a library had its own there
                os.write(write, bytes([number]))

        wake()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        listener = threading.Thread(target=self._listen, args=(read,), daemon=True)

        def end() -> None:  # last of all, see `atexit`; jax's client must not be asked after it
            self.hold()
            os.write(write, b"\0")
            listener.join(BRIEFLY_S)

        atexit.register(end)
        self._answers = True
        listener.start()
        threading.Thread(target=self._answer, daemon=True).start()

    def share(self, notes: Notes) -> None:
        """Stops with other processes from now on; all call this in the same phase."""
        with self._changed:
            self._notes = notes

    def enter(self, phase: Phase) -> None:
        """Begins a phase of the main thread. Does not return if a stop ends the one before.

        Raises Interrupted instead where answers are not installed.
        """
        with self._changed:
            if self._answers:
                self._changed.wait_for(self._may_go_on)
            else:
                self._raise_if_due()
            self._phase, self._number = phase, self._number + 1
            self._changed.notify_all()
            if not self._answers:
                self._raise_if_due()

    def notice(self, number: int, *, told: bool = False) -> None:
        """Handles a signal; where answers are not installed, the next phase heeds it.

        told: by another process, which may have got the same Ctrl-C as this one.
        """
        with self._changed:
            if self._over:
                return None if told else self._leave(128 + number)
            self._interrupts += number == signal.SIGINT and not told
            if self._signal is not None:
                if self._answers and number == signal.SIGINT and self._interrupts > 1:
                    said = "SIGINT again: left at once; what was done since the last save is lost"
                    _briefly(lambda: _say(said))
                    self._leave(128 + number)
                return
            self._signal = signal.Signals(number)
            self._changed.notify_all()

    def hold(self) -> None:
        """Before the process ends by itself: does not return if a stop ends it.

        What failed may have failed by the stop: child processes and other hosts get it too.
        """
        if not self._answers:
            return
        time.sleep(0.05)  # for the listener: the signal may have come just now
        with self._changed:
            if self._signal is not None and not self._phase.waits:
                self._changed.wait_for(lambda: False)
            self._over = True

    @contextlib.contextmanager
    def at_the_end(self, call: Callable[[], None]) -> Iterator[None]:
        """Context manager: calls `call` after the work, also if a stop ends the process within."""
        self._endings.append(call)
        try:
            yield
        finally:
            self._endings.remove(call)
            call()

    def _may_go_on(self) -> bool:
        if self._signal is None:
            return True
        return self._until is not None and (self._number < self._until or self._phase.waits)

    def _raise_if_due(self) -> None:
        if self._signal is None or self._phase.waits:
            return
        phase, number, self._signal = self._phase, self._signal, None
        step = phase.save() if phase.save else None
        raise Interrupted(phase.status or 128 + number, step)

    def _listen(self, read: int) -> None:
        while True:
            if select.select([read], [], [], POLL_S)[0]:
                for number in os.read(read, 64):
                    if not number:
                        return
                    self.notice(number)
            elif self._notes is not None and self._signal is None and not self._over:
                for name in self._notes.all("stop").values():
                    self.notice(signal.Signals[name], told=True)

    def _answer(self) -> None:
        """Ends the process once a signal has come."""
        with self._changed:
            self._changed.wait_for(lambda: self._signal is not None)
            phase, number, name = self._phase, self._number, self._signal.name
        _briefly(lambda: _say(f"{name}: {phase.says}"))
        try:
            until = self._agree(phase, number)
            with self._changed:
                self._until = until
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._number >= until and not self._phase.waits)
                if self._over:
                    return
                announced, phase = phase, self._phase
            if phase.save:
                phase.save()
            elif phase is not announced:
                _briefly(lambda: _say(f"{name}: {phase.says}"))
            status = phase.status or 128 + self._signal
        except BaseException as error:  # a thread's would be printed, and the process would stay
            own = isinstance(error, CrossdimError)
            told = f"error: {error}" if own else traceback.format_exc()
            _briefly(lambda: _say(told))
            status = 1
        try:
            for call in [*self._endings, sys.stdout.flush, sys.stderr.flush]:
                _briefly(call)
            if self._notes is not None and status != 1:
                _part(self._notes)
        finally:
            self._leave(status)

    def _agree(self, phase: Phase, number: int) -> int:
        """The number of the phase from which on to leave.

        Of all processes that of the foremost, so that they leave together; its own where none has
        anything to save, or where one is lost and this one has not.
        """
        if (notes := self._notes) is None:
            return number
        notes.put(f"stop/{notes.index}", self._signal.name)
        notes.put(f"at/{notes.index}", f"{number} {'free' if phase.free else 'saves'}")
        told = _wait_for(notes, "at", notes.count, LOST_S if phase.free else math.inf)
        if len(told) < notes.count:
            self._notes = None
            return number
        numbers, kinds = zip(*(text.split() for text in told.values()), strict=True)
        return number if set(kinds) == {"free"} else max(map(int, numbers))


def _part(notes: Notes) -> None:
    """Returns when it is time to leave: after all are ready, and process 0 after the others.

    It keeps the notes, and jax aborts a process that finds it gone.
    """
    _mute()
    notes.put(f"ready/{notes.index}", "")
    _wait_for(notes, "ready", notes.count, TOGETHER_S)
    if notes.index > 0:
        notes.put(f"gone/{notes.index}", "")
    else:
        _wait_for(notes, "gone", notes.count - 1, TOGETHER_S)
        time.sleep(0.5)


def _wait_for(notes: Notes, folder: str, count: int, patience_s: float) -> Mapping[str, str]:
    """The notes under `folder/` once there are so many, or those that are there by then."""
    until = time.monotonic() + patience_s
    while len(told := notes.all(folder)) < count and time.monotonic() < until:
        time.sleep(0.05)
    return told


def _say(text: str) -> None:
    start = "\n" if os.isatty(2) else ""  # after a progress bar
    os.write(2, f"{start}{text}\n".encode(errors="backslashreplace"))


def _mute() -> None:
    """Ends what is printed: what jax and this process say of others that are gone helps nobody."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _briefly(call: Callable[[], Any]) -> None:
    """Calls, and waits for `BRIEFLY_S` at most: a terminal or a disk may hang, or be gone."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python starts none any more once the main thread has ended
        return quietly()
    thread.join(BRIEFLY_S)


_PROGRAM = Program()
install, share, enter = _PROGRAM.install, _PROGRAM.share, _PROGRAM.enter
notice, hold, at_the_end = _PROGRAM.notice, _PROGRAM.hold, _PROGRAM.at_the_end
