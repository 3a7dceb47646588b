"""Peak memory of a process; and what a compiler leaves behind goes back to the system."""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

COMPILED = "/jax/core/compile/backend_compile_duration"  # also of a program found in the cache

# Seconds of compiling below which there is nothing worth giving back.
LEAST_S = 1.0

# Glibc's `malloc_trim`, or None.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back_after_compiling() -> None:
    """Sees to it that what a long compilation has freed is given back when it ends.

    Glibc keeps freed memory for later, in blocks that are too small for a training step: those
    would be held beside it as long as the process lives. Elsewhere than on Linux with glibc nothing
    happens.
    """

    import jax  # here: asking for a peak must not raise it

    def listener(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED and seconds >= LEAST_S:
            give_back()

    jax.monitoring.register_event_duration_secs_listener(listener)


def give_back() -> None:
    """Gives back what has been freed up to now; glibc alone can be told to."""
    if TRIM is not None:
        TRIM(0)


def peak_mb() -> float:
    """The largest resident size of this process so far, in megabytes (10^6 bytes).

    VmHWM where there is one: `ru_maxrss` is inherited from the process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
