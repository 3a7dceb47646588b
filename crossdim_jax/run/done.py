"""The mark of a run that is trained and evaluated: one of several, which is not repeated."""

import os
from pathlib import Path

from crossdim_jax.run.experiment import Experiment
from crossdim_jax.storage import run_folder
from crossdim_jax.storage.files import write_text, writing
from crossdim_jax.storage.reading import read_bytes

DONE = "done"  # a file in the run's folder
_LIMIT = 4096  # bytes


def is_done(experiment: Experiment) -> bool:
    """True if a run has been trained and evaluated with this very config.

    Raises:
      ConfigError: it was with another config.
      DataError: something else has the name of the mark.
    """
    if not os.path.lexists(experiment.workdir / DONE):
        return False
    read_bytes(experiment.workdir / DONE, limit=_LIMIT)
    experiment.claim(write=False)
    return run_folder.has_checkpoint(experiment.workdir)


def mark(workdir: Path, seconds: float | None = None) -> None:
    """Marks a run as done. seconds: that it took, if that is to be known."""
    path = workdir / DONE
    with writing(path):
        write_text(path, "" if seconds is None else f"{seconds:.3f}")


def seconds(workdir: Path) -> float | None:
    """Seconds that a finished run took; None if it is not finished, or has not said."""
    if not os.path.lexists(workdir / DONE):
        return None
    try:
        return float(read_bytes(workdir / DONE, limit=_LIMIT))
    except ValueError:  # also of a mark that is no file: whoever needs the run says so
        return None
