"""The metrics file of a run, one JSON object a line, and the same numbers for TensorBoard."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crossdim_jax.storage.files import ROOM, write_bytes, writing
from crossdim_jax.storage.metrics_file import lines, record
from crossdim_jax.storage.run_folder import METRICS, TENSORBOARD, UNREADABLE_METRICS
from crossdim_jax.training.tensorboard import TensorBoardWriter

logger = logging.getLogger(__name__)


class MetricWriter:
    """Appends lines to `metrics.jsonl`; after a resume the file is as if nothing had happened.

    Args:
      workdir: the run folder; exists.
      step: the step that training resumes after, 0 for a fresh start. Lines of later steps are
        dropped, because those steps will be made again, and so is a torn last line. Other lines
        that cannot be read are told of and kept in a file of their own.
      redo: kinds of lines that are dropped at `step` itself, because they will be written again.
      enabled: False writes nothing: on all processes but the first.
      tensorboard: True also writes event files for TensorBoard, see `TensorBoardWriter`.

    Raises DataError, naming the file, if it cannot be read or written, and ConfigError if
    tensorboardX is asked for and not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        step: int = 0,
        redo: Collection[str] = (),
        enabled: bool = True,
        tensorboard: bool = False,
    ):
        self.path = Path(workdir) / METRICS
        self._file, self._tensorboard = None, None
        if not enabled:
            return
        with self._writing():
            if os.path.lexists(self.path):
                self._keep_until(step, redo)
            if tensorboard:
                kept = filter(None, map(record, lines(self.path)))
                self._tensorboard = TensorBoardWriter(self.path.parent / TENSORBOARD, kept)
            self._file = self.path.open("a", encoding="utf-8")

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self.path, remedy=f"{ROOM}, then run the same command to go on")

    def _keep_until(self, step: int, redo: Collection[str]) -> None:
        kept, unreadable = [], []
        *whole, torn = lines(self.path)  # the last is empty, or was cut off by a crash
        for line in [*whole, *([torn] if record(torn) else [])]:
            found = record(line)
            if found is None:
                unreadable += [line] if line.strip() else []
            elif found["step"] < step or (found["step"] == step and found["kind"] not in redo):
                kept.append(line)
        if unreadable:
            aside = self.path.with_name(UNREADABLE_METRICS)
            before = lines(aside)[:-1]
            write_bytes(aside, b"".join(line + b"\n" for line in [*before, *unreadable]))
            logger.warning(
                "%s: %d lines cannot be read; they are kept in %s, and the others are used",
                *(self.path, len(unreadable), aside.name),
            )
        write_bytes(self.path, b"".join(line + b"\n" for line in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line; numbers that are not finite become null."""
        if self._file is None:
            return
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        with self._writing():
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                self._tensorboard.write(clean)

    def sync(self) -> None:
        """Returns once all lines are on disk: before a checkpoint that counts on them."""
        if self._file is not None:
            with self._writing():
                os.fsync(self._file.fileno())
                if self._tensorboard is not None:
                    self._tensorboard.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        file, self._file = self._file, None
        if file is not None:
            # Each line has been flushed: what is left is one that could not be, and was told of.
            with contextlib.suppress(OSError):
                file.close()
