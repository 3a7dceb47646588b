"""Metrics of a training: from the device into running means, `metrics.jsonl` and the progress."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from crossdim_jax.errors import CrossdimError
from crossdim_jax.training import nonfinite
from crossdim_jax.training.metric_writer import MetricWriter
from crossdim_jax.training.progress import Progress
from crossdim_jax.training.record import Record
from crossdim_jax.training.settings import TrainSettings
from crossdim_jax.training.totals import Totals, mean_known


class TrainingError(CrossdimError):
    """Error of a training that cannot go on: the loss is not a number."""


class Rate:
    """Training speed in images per second, over the steps since the last `measure`."""

    def __init__(self):
        self.images_per_s = math.nan
        self._images, self._since = 0, None

    @property
    def begun(self) -> bool:
        """True once this process has made a step."""
        return self._since is not None

    def begin(self) -> None:
        """Starts the clock, once the first step is compiled: that is no part of a rate."""
        if self._since is None:
            self._since = time.monotonic()

    def add(self, images: int) -> None:
        """Counts the images of a step."""
        self._images += images

    def measure(self) -> float:
        """Images per second since the last call; NaN if this process has made no step."""
        now = time.monotonic()
        if self._since is not None:
            self.images_per_s = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return self.images_per_s

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager for work that is no part of the rate."""
        started = time.monotonic()
        yield
        if self._since is not None:
            self._since += time.monotonic() - started


class Journal:
    """Journal of the steps and validations that one process makes.

    Args:
      settings: of the training.
      record: gets the sums, the learning rate and the number of steps left out.
      writer: of `metrics.jsonl`.
      progress: shown meanwhile.
    """

    def __init__(
        self, settings: TrainSettings, record: Record, writer: MetricWriter, progress: Progress
    ):
        self.rate = Rate()
        self._settings, self._record = settings, record
        self._writer, self._progress = writer, progress
        self._in_flight: tuple | None = None
        self._started = time.monotonic()

    def dispatched(self, metrics: Any, batch: Mapping[str, Any]) -> None:
        """Notes a step that has been dispatched, and takes in the one before it."""
        self.receive()
        self._record.step += 1
        self.rate.begin()
        self._in_flight = (self._record.step, metrics, batch)

    def receive(self) -> None:
        """Waits for the metrics of the step in flight, if there is one, and takes them in.

        Raises TrainingError if the step is not finite and may not be left out.
        """
        if self._in_flight is None:
            return
        step, metrics, batch = self._in_flight
        self._in_flight = None
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics["loss"][0]), float(metrics["grad_norm"][0])
        self._record.learning_rate = float(metrics.pop("learning_rate")[0])
        if math.isfinite(loss) and math.isfinite(norm):
            self._record.interval.add(metrics)
            self._record.epoch.add({"dice": metrics["dice"]})
        else:
            self._leave_out(step, loss, norm, batch)
        self.rate.add(len(batch["image"]) * jax.process_count())
        if step % self._settings.log_every_steps == 0 or step == self._settings.total_steps:
            self._log(step)
        now = Totals(metrics)
        shown = {"loss": float(now.mean("loss")), "dice": mean_known(now.mean("dice"))}
        shown["images_per_s"] = self.rate.images_per_s
        self._progress.update(step, step / self._settings.steps_per_epoch, shown)

    def _leave_out(self, step: int, loss: float, norm: float, batch: Mapping[str, Any]) -> None:
        """Counts a step that is not finite, or raises TrainingError if it may not be left out."""
        text, most = nonfinite.describe(step, loss, norm, batch), self._settings.skip_nonfinite
        if self._record.skipped_steps >= most:
            allowed = f" It is one more than the {most} that may be left out." if most else ""
            dump = nonfinite.dump(self._settings.workdir, step, loss, norm, batch)
            raise TrainingError(
                f"{text}{allowed} {dump} Look at "
                "these cases. The last checkpoint is from before this step: from there the run "
                "goes on with a larger train.skip_nonfinite, which leaves such steps out. A lower "
                "learning rate or clip_norm need a new run folder."
            )
        self._record.skipped_steps += 1
        self._progress.say(f"{text} The step is left out.")

    def flush(self) -> None:
        """Writes the steps since the last line, if there are any: the training ends early."""
        if self._record.interval.names:
            self._log(self._record.step)

    def _log(self, step: int) -> None:
        totals, skips = self._record.interval, self._settings.skip_nonfinite > 0
        rate = self.rate.measure()
        scalars = ["loss", *(name for name in totals.names if name not in ("loss", "dice"))]
        self._writer.write(
            {
                "kind": "train",
                **self._place(step),
                **{name: float(totals.mean(name)) for name in scalars},
                **self._dice(totals.mean("dice")),
                "learning_rate": self._record.learning_rate,
                **({"skipped_steps": self._record.skipped_steps} if skips else {}),
                "images_per_s": rate,
                "seconds": self.seconds,
            }
        )
        self._record.interval = Totals()

    def validated(self, dice: np.ndarray) -> None:
        """Writes and shows a validation after the last step: `dice` by class, NaN for no score."""
        step = self._record.step
        self._writer.write(
            {
                "kind": "validation",
                **self._place(step),
                **self._dice(dice),
                "seconds": self.seconds,
            }
        )
        regions = zip(self._settings.regions, dice, strict=True)
        named = ", ".join(f"{region} {score:.3f}" for region, score in regions)
        best = " (best so far)" if self._record.best_step == step else ""
        score = mean_known(dice)
        self._progress.say(f"validation after step {step}: Dice {score:.3f}: {named}{best}")

    def say(self, text: str) -> None:
        """Shows a line beside the progress."""
        self._progress.say(text)

    def sync(self) -> None:
        """Returns once all lines are on disk: before a checkpoint that counts on them."""
        self._writer.sync()

    @property
    def seconds(self) -> float:
        """Training time of the run up to now."""
        return self._record.seconds + time.monotonic() - self._started

    def _place(self, step: int) -> dict[str, Any]:
        return {"step": step, "epoch": step / self._settings.steps_per_epoch}

    def _dice(self, dice: np.ndarray) -> dict[str, float]:
        regions = self._settings.regions
        dice = np.broadcast_to(dice, len(regions))  # one NaN if no step was counted
        named = {f"dice_{name}": float(d) for name, d in zip(regions, dice, strict=True)}
        return named | {"dice": mean_known(dice)}
