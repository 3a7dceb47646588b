"""The training loop: batches in; checkpoints, metrics and a best model out.

The loop never waits for the step it has just dispatched: it reads the metrics of step n - 1 while
step n runs, and the next batch is loaded and sent meanwhile. It does wait at the end of an epoch
and before a checkpoint, which must agree with the metrics file.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossdim_jax.errors import ConfigError, CrossdimError
from crossdim_jax.runtime import sharding, stop
from crossdim_jax.training import nonfinite
from crossdim_jax.training.checkpoint import Checkpointer
from crossdim_jax.training.metric_writer import MetricWriter
from crossdim_jax.training.progress import Progress
from crossdim_jax.training.state import TrainState, variables
from crossdim_jax.training.step import Step
from crossdim_jax.training.totals import Totals, mean_known
from crossdim_jax.training.validation import Validation, absent_classes, validate

# What the best score is a mean over, as checkpoints record it: a version that scores otherwise
# writes something else here.
PRESENT = "classes that a validation case has"


class TrainingError(CrossdimError):
    """Training cannot go on: the loss is not a number."""


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How a training ended: its state, and the score and step of the best validation."""

    state: TrainState
    best_score: float | None
    best_step: int | None


def steps_per_epoch(cases: int, batch_size: int) -> int:
    """Steps in which as many samples are drawn as there are training cases."""
    return math.ceil(cases / batch_size)


def fit(
    state: TrainState,
    step: Step,
    data: Iterable[Mapping[str, Any]],
    *,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    regions: Sequence[str],
    total_steps: int,
    steps_per_epoch: int,
    validation: Validation | None = None,
    log_every_steps: int = 10,
    checkpoint_every_steps: int | None = None,
    keep: int = 2,
    early_stop_epochs: int | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
    skip_nonfinite: int = 0,
) -> FitResult:
    """Trains from the latest checkpoint in `workdir`, or from `state`, up to `total_steps`.

    Args:
      state: from `train.init_state`; its arrays may be donated.
      step: from `train.jit_step`.
      data: batches `{"image", "target", "id"}` without end, this process's part of each; its
        iterator has `get_state()` (JSON) and `set_state()`.
      workdir: the run folder; see `run_folder.claim`.
      mesh: the mesh that `state` lives on.
      regions: names of what Dice is measured of, for the metrics file.
      total_steps: length of the training.
      steps_per_epoch: see `steps_per_epoch`.
      validation: None for none; then no best checkpoint is kept.
      log_every_steps: steps averaged in one line of `metrics.jsonl`.
      checkpoint_every_steps: None for every epoch.
      keep: how many of the latest checkpoints are kept.
      early_stop_epochs: training ends once so many epochs have brought no better validation; None:
        never.
      config: recorded in every checkpoint; not read.
      progress: whether to show it on stderr.
      skip_nonfinite: how many steps of the run may be left out because their loss or gradient was
        not finite; more than 0 needs a step made with `skip_nonfinite`.

    Raises:
      stop.Interrupted: a stop was noticed, in a program that has not installed answers to it; the
        state is saved.
      TrainingError: the loss or its gradient is not finite; names the step, the cases, and the file
        that their batch was written to.
      DataError: the run folder cannot be written; the last checkpoint is intact.
      ConfigError: a length or interval is out of range.
    """
    every = checkpoint_every_steps or steps_per_epoch
    _check_lengths(total_steps, steps_per_epoch, log_every_steps, every)
    batches = iter(data)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpointer(workdir, keep=keep))
        record = _Record(steps_per_epoch)
        restored = checkpoints.restore_latest(state)
        if restored is not None:
            jax.tree.map(lambda array: array.delete(), state)  # makes room
            state, meta = restored
            record.restore(meta)
            if record.best_step not in checkpoints.best_steps:  # removed by hand, or lost
                record.best_score = record.best_step = None
            batches.set_state(meta["data"])
            stop.enter(stop.repeatable("before the next step; the last checkpoint holds"))
        first = jax.process_index() == 0
        writer = MetricWriter(workdir, step=record.step, redo=record.unwritten(), enabled=first)
        stack.callback(writer.close)
        shown = Progress(total_steps, record.step, enabled=progress and first)
        stack.callback(shown.close)
        if restored is not None:
            shown.say(f"going on after step {record.step} of {total_steps}")
        run = _Run(record, checkpoints, writer, shown, validation)
        run.regions, run.config = tuple(regions), dict(config or {})
        run.log_every_steps, run.total_steps = log_every_steps, total_steps
        run.skip_nonfinite, run.workdir = skip_nonfinite, workdir
        run.early_stop_epochs = early_stop_epochs
        try:
            state = _train(run, state, step, batches, mesh, every)
        except BaseException:  # a stop that is saving does so before all is closed
            stop.enter(stop.FAILING)
            raise
        stop.enter(stop.repeatable("after the last step"))
    return FitResult(state, record.best_score, record.best_step)


def _check_lengths(total_steps, steps_per_epoch, log_every_steps, every) -> None:
    if min(total_steps, steps_per_epoch, log_every_steps, every) < 1:
        raise ConfigError(
            f"total_steps={total_steps}, steps_per_epoch={steps_per_epoch}, "
            f"log_every_steps={log_every_steps}, checkpoint_every_steps={every}: expected >= 1"
        )


def _train(run: "_Run", state: TrainState, step: Step, batches, mesh, every: int) -> TrainState:
    record = run.record
    if record.validation_pending:
        run.validate(state)
        if run.exhausted():
            run.end()
        stop.enter(run.before_a_step(state))
    exhausted = run.exhausted()
    while record.step < run.total_steps and not exhausted:
        batch = dict(next(batches))
        arrays = {name: array for name, array in batch.items() if name != "id"}
        if run.begun:  # else nothing is lost by leaving, and this compiles
            stop.enter(stop.BUSY)
        state, metrics = step(state, sharding.shard_batch(arrays, mesh))
        stop.enter(stop.BUSY)
        run.data_state = batches.get_state()
        run.dispatched(metrics, batch)
        end = record.step == run.total_steps
        if end or record.step % record.steps_per_epoch == 0:
            run.end_epoch(state)
            exhausted = run.exhausted()
            if exhausted:
                end = True
                run.end()
        if end or record.step % every == 0:
            run.save(state)
        if not end:
            stop.enter(run.before_a_step(state))
    run.checkpoints.wait()
    return state


def _better(score: float, best: float | None) -> bool:
    """Whether a score is a new best; NaN, for no score at all, is better than nothing only."""
    if best is None or math.isnan(best):
        return best is None or not math.isnan(score)
    return score > best


class _Record:
    """What a resume needs besides arrays and data position; becomes the checkpoint's `meta`."""

    def __init__(self, steps_per_epoch: int):
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self.interval, self.epoch = Totals(), Totals()
        self.gate_open = False
        self.validation_pending = False
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.scored_over: str | None = None
        self.skipped_steps = 0
        self.learning_rate: float | None = None
        self.seconds = 0.0

    def restore(self, meta: Mapping[str, Any]) -> None:
        self.interval, self.epoch = Totals(meta["interval"]), Totals(meta["epoch_sums"])
        for name in self._PLAIN:
            setattr(self, name, meta.get(name, getattr(self, name)))  # some are of later versions

    _PLAIN = (
        *("step", "gate_open", "validation_pending", "best_score", "best_step", "scored_over"),
        *("skipped_steps", "seconds", "learning_rate"),
    )

    def unwritten(self) -> list[str]:
        """The kinds of lines of the metrics file that are still to come for the last step."""
        kinds = {"validation": self.validation_pending, "train": bool(self.interval.names)}
        return [kind for kind, to_come in kinds.items() if to_come]

    def meta(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self._PLAIN},
            "epoch": self.step / self.steps_per_epoch,
            "interval": self.interval.json(),
            "epoch_sums": self.epoch.json(),
        }


class _Run:
    """The bookkeeping of one process's part of a training."""

    regions: tuple[str, ...]
    config: dict[str, Any]
    log_every_steps: int
    total_steps: int
    skip_nonfinite: int
    workdir: Path
    early_stop_epochs: int | None = None
    data_state: Any = None  # after the batch of the last step

    def __init__(
        self,
        record: _Record,
        checkpoints: Checkpointer,
        writer: MetricWriter,
        shown: Progress,
        validation: Validation | None,
    ):
        self.record, self.checkpoints, self.writer = record, checkpoints, writer
        self.shown, self.validation = shown, validation
        self._saved = record.step
        self._in_flight: tuple | None = None
        self._clock = time.monotonic()
        self._images, self._images_since = 0, None
        self._rate = math.nan

    def dispatched(self, metrics, batch: Mapping[str, Any]) -> None:
        """Notes a step that has been dispatched; takes in the one before it."""
        self.receive()
        self.record.step += 1
        if self._images_since is None:  # by now the step is compiled, which is no part of a rate
            self._images_since = time.monotonic()
        self._in_flight = (self.record.step, metrics, batch)

    @property
    def begun(self) -> bool:
        """Whether this process has made a step."""
        return self._images_since is not None

    def receive(self) -> None:
        """Waits for the metrics of the step in flight, if there is one."""
        if self._in_flight is None:
            return
        step, metrics, batch = self._in_flight
        self._in_flight = None
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics["loss"][0]), float(metrics["grad_norm"][0])
        self.record.learning_rate = float(metrics.pop("learning_rate")[0])
        if math.isfinite(loss) and math.isfinite(norm):
            self.record.interval.add(metrics)
            self.record.epoch.add({"dice": metrics["dice"]})
        else:
            self._not_finite(step, loss, norm, batch)
        self._images += len(batch["image"]) * jax.process_count()
        if step % self.log_every_steps == 0 or step == self.total_steps:
            self._log(step)
        now = Totals(metrics)
        self.shown.update(
            step,
            step / self.record.steps_per_epoch,
            {
                "loss": float(now.mean("loss")),
                "dice": mean_known(now.mean("dice")),
                "images_per_s": self._rate,
            },
        )

    def _not_finite(self, step: int, loss: float, norm: float, batch: Mapping[str, Any]) -> None:
        """Counts a step that was left out, or raises TrainingError if it may not be."""
        found = nonfinite.describe(step, loss, norm, batch)
        if self.record.skipped_steps >= self.skip_nonfinite:
            allowed = ""
            if self.skip_nonfinite:
                allowed = f" It is one more than the {self.skip_nonfinite} that may be left out."
            raise TrainingError(
                f"{found}{allowed} {nonfinite.dump(self.workdir, step, loss, norm, batch)} Look at "
                "these cases. The last checkpoint is from before this step: from there the run "
                "goes on with a larger train.skip_nonfinite, which leaves such steps out. A lower "
                "learning rate or clip_norm need a new run folder."
            )
        self.record.skipped_steps += 1
        self.shown.say(f"{found} The step is left out.")

    def end(self) -> None:
        """Logs the steps since the last line, if there are any: the training ends early."""
        if self.record.interval.names:
            self._log(self.record.step)

    def _log(self, step: int) -> None:
        totals, now = self.record.interval, time.monotonic()
        if self._images_since is not None:  # else this process has made no step
            self._rate = self._images / max(now - self._images_since, 1e-9)
        self._images, self._images_since = 0, now
        scalars = ["loss", *(name for name in totals.names if name not in ("loss", "dice"))]
        skipped = {"skipped_steps": self.record.skipped_steps} if self.skip_nonfinite else {}
        self.writer.write(
            {
                "kind": "train",
                **self._place(step),
                **{name: float(totals.mean(name)) for name in scalars},
                **self._dice(totals.mean("dice")),
                "learning_rate": self.record.learning_rate,
                **skipped,
                "images_per_s": self._rate,
                "seconds": self._seconds(),
            }
        )
        self.record.interval = Totals()

    def end_epoch(self, state: TrainState) -> None:
        """Opens the gate if the training Dice says so, and validates if it is time."""
        self.receive()
        record, validation = self.record, self.validation
        dice = mean_known(record.epoch.mean("dice"))
        record.epoch = Totals()
        if validation is None:
            return
        if validation.from_dice <= 0 or dice > validation.from_dice:
            record.gate_open = True
        epoch = record.step // record.steps_per_epoch
        due = record.gate_open and epoch % validation.every_epochs == 0
        if due or record.step == self.total_steps:
            self.validate(state)

    def validate(self, state: TrainState) -> None:
        """Validates the slow weights and keeps them if they are the best.

        A stop saves at once: the validation is then made by the start that goes on.
        """
        with self._outside_the_rate():
            self.record.validation_pending = True
            stop.enter(self._saving(state, "saving; the validation is made again"))
            dice = validate(variables(state), self.validation)
            stop.enter(stop.BUSY)
            self.record.validation_pending = False
            self._take_in(dice, state)

    def _take_in(self, dice: np.ndarray, state: TrainState) -> None:
        record = self.record
        score = mean_known(dice)
        self._forget_a_best_scored_otherwise()
        if _better(score, record.best_score):
            record.best_score, record.best_step = score, record.step
            self.checkpoints.save_best(state, self._meta() | {"score": score})
        self.writer.write(
            {
                "kind": "validation",
                **self._place(record.step),
                **self._dice(dice),
                "seconds": self._seconds(),
            }
        )
        named = ", ".join(f"{r} {d:.3f}" for r, d in zip(self.regions, dice, strict=True))
        best = " (best so far)" if record.best_step == record.step else ""
        self.shown.say(f"validation after step {record.step}: Dice {score:.3f}: {named}{best}")

    def _forget_a_best_scored_otherwise(self) -> None:
        """A best score of an earlier version may count classes that no validation case has."""
        record = self.record
        known, record.scored_over = record.scored_over == PRESENT, PRESENT
        if known or record.best_score is None or not absent_classes(self.validation):
            return
        self.shown.say(
            f"the best score up to now, {record.best_score:.3f} of step {record.best_step}, counts "
            "classes that no validation case has; it is not compared with the scores from now on"
        )
        record.best_score = record.best_step = None

    @contextlib.contextmanager
    def _outside_the_rate(self) -> Iterator[None]:
        """Around what is no part of the training's images/s."""
        started = time.monotonic()
        yield
        if self._images_since is not None:
            self._images_since += time.monotonic() - started

    def exhausted(self) -> bool:
        """Whether the last epochs have brought no better validation; as true after a resume."""
        record, epochs = self.record, self.early_stop_epochs
        if epochs is None or record.best_step is None or record.validation_pending:
            return False
        if record.step % record.steps_per_epoch:
            return False
        found = record.step - record.best_step >= epochs * record.steps_per_epoch
        if found:
            self.shown.say(
                f"no better validation than that of step {record.best_step} for {epochs} epochs: "
                f"training ends after step {record.step}"
            )
        return found

    def save(self, state: TrainState) -> None:
        """Checkpoints the step that was dispatched last, once its metrics are known good."""
        self.receive()
        with self._outside_the_rate():
            self.writer.sync()
            self.checkpoints.save(state, self._meta() | {"data": self.data_state})
        self._saved = self.record.step

    def before_a_step(self, state: TrainState) -> stop.Phase:
        """The phase in which the next batch is waited for."""
        return self._saving(state, stop.BUSY.says)

    def _saving(self, state: TrainState, says: str) -> stop.Phase:
        """A phase in which nothing changes `state`, and a stop saves what is not saved yet."""

        def save() -> int:
            if self._saved != self.record.step:
                self.save(state)
            self.checkpoints.wait()
            step = self.record.step
            self.shown.say(f"stopped and saved after step {step}; run the same command to go on")
            return step

        return stop.Phase(says, stop.AGAIN, save)

    def _meta(self) -> dict[str, Any]:
        return self.record.meta() | {"config": self.config, "seconds": self._seconds()}

    def _place(self, step: int) -> dict[str, Any]:
        return {"step": step, "epoch": step / self.record.steps_per_epoch}

    def _dice(self, dice: np.ndarray) -> dict[str, float]:
        dice = np.broadcast_to(dice, len(self.regions))  # one nan if no step was counted
        named = zip(self.regions, dice, strict=True)
        return {f"dice_{region}": float(d) for region, d in named} | {"dice": mean_known(dice)}

    def _seconds(self) -> float:
        return self.record.seconds + time.monotonic() - self._clock
