"""Pool of threads or processes for pieces of work, done in any order.

Processes are started afresh (no fork: the libraries of this program have threads), import only what
the work needs, leave interrupting to their parent and end with it, even if it is killed.
"""

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence

from crossdim_jax.errors import DataError
from crossdim_jax.text import make_visible


def run[Result](
    work: Sequence[Callable[[], Result]], *, threads: int = 0, processes: int = 0
) -> Iterator[tuple[int, Result]]:
    """Yields `(index, result)` of each piece of work as it is done.

    Closing the iterator lets what has begun come to its end and leaves the rest.

    Args:
      work: must not raise; for processes, work and results are sent by pickle.
      threads: that work at the same time; 0 works in the calling thread, when asked.
      processes: takes so many processes instead; 0 for none.

    Raises DataError if a process was killed.
    """
    if processes == 0 and threads == 0:
        for index, call in enumerate(work):
            yield index, call()
        return
    pool = _processes(processes) if processes else concurrent.futures.ThreadPoolExecutor(threads)
    try:
        with _starting() if processes else contextlib.nullcontext():
            pending = {pool.submit(call): index for index, call in enumerate(work)}
        for future in concurrent.futures.as_completed(pending):
            yield pending[future], future.result()
    except concurrent.futures.BrokenExecutor as error:
        raise DataError(
            f"one of {processes} processes that prepare cases was killed from outside, most likely "
            "because memory ran out; fewer at a time need less "
            "(--config.data.num_processes). What is done is kept: run the same command to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _processes(count: int) -> concurrent.futures.ProcessPoolExecutor:
    with _starting():
        return concurrent.futures.ProcessPoolExecutor(
            count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
        )


def _begin() -> None:
    """Worker initialiser: ignores SIGINT and exits when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_visible(logging.lastResort)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Context manager for starting processes, which inherit what it sets.

    They do not import the program that was started and all that it imports, and do not get the
    Ctrl-C that may come before `_begin`; of this process another thread gets it. Python's process
    that unlinks semaphores does so without a word when this one is stopped.
    """
    main = sys.modules["__main__"]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [warnings, "ignore:resource_tracker"]))
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.pop("PYTHONWARNINGS")
        if warnings is not None:
            os.environ["PYTHONWARNINGS"] = warnings
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
