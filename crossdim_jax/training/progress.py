"""Progress of a training, shown while it runs."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from crossdim_jax.runtime.progress import bar
from crossdim_jax.storage.files import duration
from crossdim_jax.text import for_stream


def _if_read[**P](show: Callable[P, None]) -> Callable[P, None]:
    """Decorator: a terminal that is closed, or a pipe that nobody reads, ends no training."""

    @functools.wraps(show)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> None:
        with contextlib.suppress(OSError):
            show(*args, **kwargs)

    return quietly


class Progress:
    """Progress of the training: a bar on a terminal, now and then a line elsewhere.

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
            self._bar = bar(
                description="training",
                unit="step",
                stream=self._stream,
                total=total,
                initial=step,
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n}/{total} "
                "[{elapsed}, {remaining} left{postfix}]",
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
