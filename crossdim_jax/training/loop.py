"""The training loop: batches in; checkpoints, metrics and a best model out.

The loop never waits for the step it has just dispatched: it reads the metrics of step n - 1 while
step n runs, and the next batch is loaded and sent meanwhile. It does wait at the end of an epoch
and before a checkpoint, which must agree with the metrics file.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from crossdim_jax.runtime import sharding, stop
from crossdim_jax.training.checkpoint import Checkpointer
from crossdim_jax.training.journal import Journal
from crossdim_jax.training.metric_writer import MetricWriter
from crossdim_jax.training.progress import Progress
from crossdim_jax.training.record import Record
from crossdim_jax.training.settings import TrainSettings
from crossdim_jax.training.state import TrainState, variables
from crossdim_jax.training.step import Step
from crossdim_jax.training.totals import Totals, mean_known
from crossdim_jax.training.validation import Validation, absent_classes, validate

# The classes that the best score is a mean over, as checkpoints record it: those that a validation
# case has. A version that scores otherwise writes something else here.
PRESENT = "classes that a validation case has"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Result of a training: its last state, and the score and step of the best validation."""

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
    settings: TrainSettings,
    *,
    mesh: jax.sharding.Mesh,
    validation: Validation | None = None,
) -> FitResult:
    """Trains from the latest checkpoint of the run folder, or from `state`, to the last step.

    Args:
      state: from `initialise.init_state`; its arrays may be donated.
      step: from `step.jit_step`.
      data: batches `{"image", "target", "id"}` without end, this process's part of each; its
        iterator has `get_state()` (JSON) and `set_state()`.
      settings: length of the training, and what happens between the steps.
      mesh: the mesh that `state` lives on.
      validation: None for none; then no best checkpoint is kept.

    Raises:
      stop.Interrupted: a stop was noticed, in a program that has not installed answers to it; the
        state is saved.
      TrainingError: the loss or its gradient is not finite; names the step, the cases, and the file
        that their batch was written to.
      DataError: the run folder cannot be written; the last checkpoint is intact.
    """
    batches = iter(data)
    with Checkpointer(settings.workdir, keep=settings.keep) as checkpoints:
        state, record = _resume(checkpoints, state, batches, settings)
        with _opened(settings, record, checkpoints, validation) as run:
            run.begin(state)
            while not run.ended:
                batch = dict(next(batches))
                arrays = {name: array for name, array in batch.items() if name != "id"}
                run.before_dispatch()
                state, metrics = step(state, sharding.shard_batch(arrays, mesh))
                stop.enter(stop.BUSY)
                run.after_dispatch(state, metrics, batch, batches.get_state())
            checkpoints.wait()
    return FitResult(state, record.best_score, record.best_step)


def _resume(
    checkpoints: Checkpointer, state: TrainState, batches: Any, settings: TrainSettings
) -> tuple[TrainState, Record]:
    """The state and the record of the latest checkpoint; `state` and an empty one if none."""
    restored = checkpoints.restore_latest(state)
    if restored is None:
        return state, Record(settings.steps_per_epoch)
    jax.tree.map(lambda array: array.delete(), state)  # makes room
    state, meta = restored
    record = Record.from_meta(meta, settings.steps_per_epoch)
    lost = record.best_step not in checkpoints.best_steps  # removed by hand, or never kept
    if settings.keep_best and lost:
        record.best_score = record.best_step = None
    batches.set_state(meta["data"])
    stop.enter(stop.repeatable("before the next step; the last checkpoint holds"))
    return state, record


@contextlib.contextmanager
def _opened(
    settings: TrainSettings,
    record: Record,
    checkpoints: Checkpointer,
    validation: Validation | None,
) -> Iterator["_Run"]:
    """Context manager that opens the metrics file and the progress of a training."""
    first = jax.process_index() == 0
    writer = MetricWriter(
        settings.workdir,
        step=record.step,
        redo=record.unwritten(),
        enabled=first,
        tensorboard=settings.tensorboard,
    )
    with contextlib.closing(writer):
        progress = Progress(settings.total_steps, record.step, enabled=settings.progress and first)
        with contextlib.closing(progress):
            if record.step:
                progress.say(f"going on after step {record.step} of {settings.total_steps}")
            journal = Journal(settings, record, writer, progress)
            try:
                yield _Run(settings, record, checkpoints, journal, validation)
            except BaseException:  # a stop that is saving does so before all is closed
                stop.enter(stop.FAILING)
                raise
            stop.enter(stop.repeatable("after the last step"))


class _Run:
    """Work of one process between the steps: validation, checkpoints, early and sudden ends.

    Attributes:
      ended: True once no step is left to be made.
    """

    def __init__(
        self,
        settings: TrainSettings,
        record: Record,
        checkpoints: Checkpointer,
        journal: Journal,
        validation: Validation | None,
    ):
        self._settings, self._record, self._journal = settings, record, journal
        self._checkpoints, self._validation = checkpoints, validation
        self._saved = record.step
        self._data_state: Any = None  # after the batch of the last step
        self.ended = False

    def begin(self, state: TrainState) -> None:
        """Makes the validation that a stop has left to be made, if any."""
        pending = self._record.validation_pending
        if pending:
            self._validate(state)
        exhausted = self._exhausted()
        if exhausted and pending:
            self._journal.flush()
        if pending:
            stop.enter(self._waiting(state))
        self.ended = exhausted or self._record.step >= self._settings.total_steps

    def before_dispatch(self) -> None:
        """Makes a stop wait for the step that follows, from the second on.

        The first one compiles, and nothing is lost by leaving.
        """
        if self._journal.rate.begun:
            stop.enter(stop.BUSY)

    def after_dispatch(
        self, state: TrainState, metrics: Any, batch: Mapping[str, Any], data_state: Any
    ) -> None:
        """Takes in a step that has been dispatched, and does what is due after it.

        Args:
          state, metrics: of the step.
          batch: this process's part.
          data_state: position in the data after the batch.
        """
        record, settings = self._record, self._settings
        self._data_state = data_state
        self._journal.dispatched(metrics, batch)
        self.ended = record.step == settings.total_steps
        if self.ended or record.step % settings.steps_per_epoch == 0:
            self._end_epoch(state)
            if self._exhausted():
                self.ended = True
                self._journal.flush()
        if self.ended or record.step % settings.checkpoint_interval == 0:
            self._save(state)
        if not self.ended:
            stop.enter(self._waiting(state))

    # ----------------------------------------------------------------------- validation

    def _end_epoch(self, state: TrainState) -> None:
        """Opens the gate if the training Dice says so, and validates if it is time."""
        self._journal.receive()
        record, validation = self._record, self._validation
        dice = mean_known(record.epoch.mean("dice"))
        record.epoch = Totals()
        if validation is None:
            return
        if validation.from_dice <= 0 or dice > validation.from_dice:
            record.gate_open = True
        epoch = record.step // record.steps_per_epoch
        due = record.gate_open and epoch % validation.every_epochs == 0
        if due or self._settings.keep_best and record.step == self._settings.total_steps:
            self._validate(state)

    def _validate(self, state: TrainState) -> None:
        """Validates the slow weights, and keeps them if they are the best and that is wanted.

        A stop saves at once: the validation is then made by the start that goes on.
        """
        record = self._record
        with self._journal.rate.paused():
            record.validation_pending = True
            stop.enter(self._saving(state, "saving; the validation is made again"))
            dice = validate(variables(state), self._validation)
            stop.enter(stop.BUSY)
            record.validation_pending = False
            self._forget_best_scored_otherwise()
            score = mean_known(dice)
            if _better(score, record.best_score):
                record.best_score, record.best_step = score, record.step
                if self._settings.keep_best:
                    self._checkpoints.save_best(state, self._meta() | {"score": score})
            self._journal.validated(dice)

    def _forget_best_scored_otherwise(self) -> None:
        """Drops the best score of an earlier version if it counts classes that no case has."""
        record = self._record
        known, record.scored_over = record.scored_over == PRESENT, PRESENT
        if known or record.best_score is None or not absent_classes(self._validation):
            return
        self._journal.say(
            f"the best score up to now, {record.best_score:.3f} of step {record.best_step}, counts "
            "classes that no validation case has; it is not compared with the scores from now on"
        )
        record.best_score = record.best_step = None

    def _exhausted(self) -> bool:
        """True if early stopping is due; derived from checkpointed values only."""
        record, epochs = self._record, self._settings.early_stop_epochs
        if epochs is None or record.best_step is None or record.validation_pending:
            return False
        if record.step % record.steps_per_epoch:
            return False
        due = record.step - record.best_step >= epochs * record.steps_per_epoch
        if due:
            self._journal.say(
                f"no better validation than that of step {record.best_step} for {epochs} epochs: "
                f"training ends after step {record.step}"
            )
        return due

    # ----------------------------------------------------------------------- saving

    def _save(self, state: TrainState) -> None:
        """Checkpoints the step that was dispatched last, once its metrics are known good."""
        self._journal.receive()
        with self._journal.rate.paused():
            self._journal.sync()
            self._checkpoints.save(state, self._meta() | {"data": self._data_state})
        self._saved = self._record.step

    def _waiting(self, state: TrainState) -> stop.Phase:
        """Phase in which the next batch is waited for."""
        return self._saving(state, stop.BUSY.says)

    def _saving(self, state: TrainState, says: str) -> stop.Phase:
        """Phase in which nothing changes `state`, and a stop saves what is not saved yet."""

        def save() -> int:
            if self._saved != self._record.step:
                self._save(state)
            self._checkpoints.wait()
            step = self._record.step
            self._journal.say(f"stopped and saved after step {step}; run the same command to go on")
            return step

        return stop.Phase(says, stop.AGAIN, save)

    def _meta(self) -> dict[str, Any]:
        config = dict(self._settings.config)
        return self._record.meta() | {"config": config, "seconds": self._journal.seconds}


def _better(score: float, best: float | None) -> bool:
    """True for a new best score; NaN, for no score at all, is better than nothing only."""
    if best is None or math.isnan(best):
        return best is None or not math.isnan(score)
    return score > best
