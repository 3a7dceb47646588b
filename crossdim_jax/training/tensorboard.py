"""Scalars for TensorBoard, derived from the lines of the metrics file."""

import importlib.util
import math
import numbers
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crossdim_jax.errors import ConfigError

_SUFFIX = ".crossdim_jax"  # of the event files that are ours
_NO_SCALARS = ("kind", "step")


def require(asked: bool = True) -> None:
    """Raises ConfigError if event files are asked for and tensorboardX is not installed."""
    if asked and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "config.train.tensorboard=True needs tensorboardX, which is not installed: "
            'pip install "crossdim_jax[tensorboard]", or leave it False: metrics.jsonl holds the '
            "same numbers"
        )


class TensorBoardWriter:
    """Event file of a run, `{kind}/{name}` by step, such as `train/loss`.

    It is made anew from the metrics file whenever training starts: after a resume no step is there
    twice, and a run that begins to write it half way has its whole curves.

    Args:
      folder: of the event files; made if it does not exist. Those of earlier starts are removed.
      rows: records of the metrics file up to now.

    Raises ConfigError if tensorboardX is not installed.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]] = ()):
        require()
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob(f"events.*{_SUFFIX}"):
            earlier.unlink()
        self._writer = SummaryWriter(str(folder), filename_suffix=_SUFFIX)
        for row in rows:
            self.write(row)
        self._writer.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds the finite numbers of a record."""
        for name, value in row.items():
            number = isinstance(value, numbers.Real) and math.isfinite(value)
            if number and name not in _NO_SCALARS:
                self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def flush(self) -> None:
        """Writes what is still in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is still in memory and closes the file."""
        self._writer.close()
