"""Memory that a compiler leaves behind goes back to the system."""

import ctypes
import sys
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # also of a program found in the cache

# Seconds of compiling below which there is nothing worth giving back.
LEAST_S = 1.0


def give_back_after_compiling() -> None:
    """From now on, whatever a long compilation has freed is given back when it ends.

    Glibc keeps freed memory for later, in blocks that are too small for a training step: those
    would be held beside it as long as the process lives. Elsewhere than on Linux with glibc nothing
    happens.
    """
    trim = _trim()
    if trim is None:
        return

    def listener(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED and seconds >= LEAST_S:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listener)


def _trim():
    """Glibc's `malloc_trim`, or None."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
