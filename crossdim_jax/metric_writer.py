"""The metrics file of a run, one JSON object a line, and the progress shown while it runs."""

import contextlib
import functools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tqdm

from crossdim_jax.errors import DataError
from crossdim_jax.files import duration, write_bytes
from crossdim_jax.storage import records
from crossdim_jax.storage.reading import read_bytes
from crossdim_jax.storage.text import for_stream

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
UNREADABLE = "metrics.unreadable.jsonl"
_LIMIT = 1 << 30  # bytes of the file; a line of a step has some 300
_LINE_LIMIT = 1 << 20


def lines(path: str | os.PathLike) -> list[bytes]:
    """Lines of a metrics file, the last one without a line end; one empty line if it is absent.

    Raises DataError, naming the file, if it is no regular file or too large.
    """
    if not os.path.lexists(path):
        return [b""]
    return read_bytes(path, limit=_LIMIT).split(b"\n")


def record(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, with None for what is not finite; None if it is no record."""
    if len(line) > _LINE_LIMIT:
        return None
    try:
        found = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and isinstance(found.get("kind"), str)
    return found if good and records.COUNT.holds(found.get("step")) else None


class MetricWriter:
    """Appends lines to `metrics.jsonl`; after a resume the file is as if nothing had happened.

    Args:
      workdir: the run folder; exists.
      step: the step that training resumes after, 0 for a fresh start. Lines of later steps are
        dropped, because those steps will be made again, and so is a torn last line. Other lines
        that cannot be read are told of and kept in a file of their own.
      redo: kinds of lines that are dropped at `step` itself, because they will be written again.
      enabled: False writes nothing: on all processes but the first.

    Raises DataError, naming the file, if it cannot be read or written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        step: int = 0,
        redo: Collection[str] = (),
        enabled: bool = True,
    ):
        self.path = Path(workdir) / FILE
        self._file = None
        if not enabled:
            return
        with _naming(self.path):
            if os.path.lexists(self.path):
                self._keep_until(step, redo)
            self._file = self.path.open("a", encoding="utf-8")

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
            aside = self.path.with_name(UNREADABLE)
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
        with _naming(self.path):
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns once all lines are on disk: before a checkpoint that counts on them."""
        if self._file is not None:
            with _naming(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        if file is not None:
            # Each line has been flushed: what is left is one that could not be, and was told of.
            with contextlib.suppress(OSError):
                file.close()


class Totals:
    """Running `(sum, count)` by name, in float64; exact through JSON."""

    def __init__(self, sums: Mapping[str, Any] | None = None):
        self._sums = {
            name: (np.asarray(total, np.float64), np.asarray(count, np.float64))
            for name, (total, count) in (sums or {}).items()
        }

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds the sums and counts of a step."""
        for name, (total, count) in metrics.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (
                before[0] + np.asarray(total, np.float64),
                before[1] + np.asarray(count, np.float64),
            )

    def mean(self, name: str) -> np.ndarray:
        """`sum / count`; nan where nothing was counted."""
        total, count = self._sums.get(name, (np.zeros(()), np.zeros(())))
        return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)

    @property
    def names(self) -> list[str]:
        """What has been added, in the order of its first coming."""
        return list(self._sums)

    def json(self) -> dict[str, Any]:
        """What the constructor takes back."""
        return {
            name: (total.tolist(), count.tolist()) for name, (total, count) in self._sums.items()
        }


def mean_known(values: np.ndarray) -> float:
    """Mean of those known; nan if none is."""
    known = np.asarray(values)[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _if_read[**P](show: Callable[P, None]) -> Callable[P, None]:
    """Decorator: a terminal that is closed, or a pipe that nobody reads, ends no training."""

    @functools.wraps(show)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> None:
        with contextlib.suppress(OSError):
            show(*args, **kwargs)

    return quietly


class Progress:
    """How far the training is: a bar on a terminal, now and then a line elsewhere.

    Args:
      total: steps of the training.
      step: steps done before this process started.
      stream: default stderr.
      every_seconds: between two lines where the stream is no terminal.
      enabled: False shows nothing.
    """

    def __init__(
        self,
        total: int,
        step: int = 0,
        *,
        stream: TextIO | None = None,
        every_seconds: float = 15.0,
        enabled: bool = True,
    ):
        self._stream = stream or sys.stderr
        self._total, self._first, self._step = total, step, step
        self._every_seconds, self._enabled = every_seconds, enabled
        self._started = self._shown = time.monotonic()
        self._running = False
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=step,
                file=self._stream,
                unit="step",
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n}/{total} "
                "[{elapsed}, {remaining} left{postfix}]",
                desc="training",
            )

    @_if_read
    def update(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Shows a step.

        Args:
          step: the step just finished.
          epoch: where that is in epochs.
          metrics: `loss`, `dice` and `images_per_s`, those known.
        """
        if not self._enabled:
            return
        names = {"loss": "loss", "dice": "Dice", "images_per_s": "images/s"}
        values = {k: metrics[k] for k in names if math.isfinite(metrics.get(k, math.nan))}
        if not self._running:
            self._start_clock(step)
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch:.1f}", refresh=False)
            self._bar.set_postfix({names[k]: f"{v:.3g}" for k, v in values.items()}, refresh=False)
            self._bar.update(step - self._step)
        self._step = step
        now = time.monotonic()
        if self._bar is None and (now - self._shown >= self._every_seconds or step == self._total):
            self._shown = now
            text = ", ".join(f"{names[k]} {v:.3g}" for k, v in values.items())
            done, left = step - self._first, self._total - step
            if done or not left:  # one step alone, and compiled with, tells nothing of the others
                text += f", {duration((now - self._started) / max(done, 1) * left)} left"
            self.say(f"step {step}/{self._total}, epoch {epoch:.1f}, {text}")

    def _start_clock(self, step: int) -> None:
        """The first step was mostly compilation: the time left is told from the others."""
        self._running, now = True, time.monotonic()
        self.say(f"compiled, first step done after {duration(now - self._started)}")
        self._first, self._started = step, now
        if self._bar is not None:
            self._bar.unpause()

    @_if_read
    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if not self._enabled:
            return
        text = for_stream(text, self._stream)
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    @_if_read
    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def _naming(path: Path):
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); see that the folder can be "
            "written and its disk has room, then run the same command to go on"
        ) from error
