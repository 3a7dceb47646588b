"""Cost of a run, `run.json` of its folder: parameters, device, cases, peak memory."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.runtime import memory
from crossdim_jax.storage import run_folder
from crossdim_jax.training import optim
from crossdim_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def record(workdir: Path, state: TrainState, devices: int, *, training_cases: str) -> None:
    """Writes what is known when training starts; a peak of an earlier start is kept.

    Args:
      workdir: the run folder.
      state: whose parameters are counted.
      devices: number of those that train.
      training_cases: how many there are, see `Split.training`.

    Raises DataError if it cannot be written.
    """
    parameters = jax.tree.leaves(optim.slow(state.params))
    cost = _read(workdir) | {
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in parameters),
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "training_cases": training_cases,
    }
    _write(workdir, cost)


def record_peak(workdir: Path) -> None:
    """Adds the peak memory so far, the largest of all starts of the run.

    Left out if it cannot be written: what ended the training then has more to say.
    """
    cost = _read(workdir)
    cost["peak_memory_mb"] = max(peak_memory_mb(), cost.get("peak_memory_mb", 0.0))
    with contextlib.suppress(DataError):
        _write(workdir, cost)


def peak_memory_mb() -> float:
    """Peak of the fullest device of this process; where devices do not say, of the process."""
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
    if None not in peaks:
        return max(peaks) / 1e6
    return memory.peak_mb()


def _read(workdir: Path) -> dict[str, Any]:
    try:
        return run_folder.read_cost(workdir)
    except DataError as error:
        logger.warning("%s", error)
        return {}


def _write(workdir: Path, cost: dict[str, Any]) -> None:
    run_folder.write_json(workdir / run_folder.RUN, cost)
