"""Faults of checkpoints: damage, records of other steps, failures of the disk."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from crossdim_jax.errors import DataError
from crossdim_jax.storage import checksums


def find_damaged(folder: Path, steps: list[int], *, until_good: bool = False) -> dict[int, str]:
    """Damaged checkpoints of these, step -> how; all processes get the first one's answer.

    They must agree: restoring is done by all together.
    """
    found: dict[int, str] = {}
    for step in steps if jax.process_index() == 0 else ():
        if wrong := checksums.damage(folder / str(step)):
            found[step] = wrong
        elif until_good:
            break
    if jax.process_count() == 1 or not steps:
        return found
    said = multihost_utils.broadcast_one_to_all(np.array([step in found for step in steps]))
    return {
        step: found.get(step, "damaged") for step, is_so in zip(steps, said, strict=True) if is_so
    }


def check_record(meta: Any, folder: Path) -> None:
    """Raises ValueError if a checkpoint's record is none, or is of another step."""
    fields = ("interval", "epoch_sums", "config")
    if not isinstance(meta, dict):
        raise ValueError("its record is no object")
    if isinstance(step := meta.get("step"), int) and step != int(folder.name):
        raise ValueError(f"its record is of step {step}")
    if wrong := [name for name in fields if not isinstance(meta.get(name, {}), dict)]:
        raise ValueError(f"{wrong[0]!r} of its record is no object")


def check_saved(saved: bool, folder: Path, step: int) -> None:
    """Raises DataError if Orbax declined to save: silently, a step at or below its latest."""
    if not saved:
        raise DataError(
            f"{folder}: the checkpoint of step {step} was not written, because the folder holds "
            "one of a later step; is another process training in this run folder? See to it that "
            "there is one only, then run the same command to go on"
        )


@functools.cache
def silence_late_answers() -> None:
    """Keeps what TensorStore answers to a write that was given up already off the terminal.

    Where one file of a checkpoint cannot be written, Orbax closes its event loop on the first
    error. Every other file's answer then finds the loop closed, on a thread of TensorStore's, and
    Python would print a traceback of each beside the error that says it all.
    """
    shown = sys.unraisablehook

    def show(unraisable) -> None:
        if not (
            isinstance(unraisable.exc_value, RuntimeError)
            and str(unraisable.exc_value) == "Event loop is closed"
            and unraisable.object is None
        ):
            shown(unraisable)

    sys.unraisablehook = show


@contextlib.contextmanager
def naming(folder: Path, doing: str, checkpointer: Any = None) -> Iterator[None]:
    """Context manager: a failure of the file system, or Orbax's account of one, is a DataError."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        done = ""
        if checkpointer is not None:
            checkpointer.settle()
            if steps := checkpointer.steps:
                done = f" The last complete checkpoint is step {max(steps)}."
        raise DataError(
            f"{folder}: {doing} failed: {error}.{done} See that the folder can be written and its "
            "disk has room, then run the same command to go on."
        ) from error
