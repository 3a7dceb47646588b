"""Checkpoints of a run, on disk; the only module that knows Orbax.

    checkpoints/<step>/         everything that resuming needs; the latest `keep`
    checkpoints/best/<step>/    what evaluating needs, of the best validation so far, and of the
                                best before it, in case the steps since the latest are lost

A checkpoint has three items: `variables` (what to evaluate: the slow parameters and the running
statistics), `training` (the step, the fast parameters, the optimiser's state) and `meta`, a JSON
record (data position, best score, validation gate, running sums, config). Writing is asynchronous
and atomic: a folder gets its name when it is complete, with the checksums of its files in it; these
are compared before anything is restored.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from crossdim_jax.errors import DataError
from crossdim_jax.runtime import sharding
from crossdim_jax.storage import checksums
from crossdim_jax.storage.files import write_text
from crossdim_jax.storage.run_folder import CHECKPOINTS, finished
from crossdim_jax.text import without_paths
from crossdim_jax.training.checkpoint_faults import (
    check_record,
    check_saved,
    find_damaged,
    naming,
    silence_late_answers,
)
from crossdim_jax.training.state import TrainState, from_checkpoint, training_arrays, variables

BEST = "best"
# In which Orbax notes the completion, after the checksums; nothing is restored from them.
NOTES = ("_CHECKPOINT_METADATA", ocp.path.atomicity.COMMIT_SUCCESS_FILE)

_MANAGERS = itertools.count()


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    Args:
      workdir: the run folder.
      keep: how many of the latest checkpoints are kept, besides the best.

    Raises DataError, naming the folder, if it cannot be made.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int = 2):
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        self._writing: int | None = None
        silence_late_answers()
        with naming(self.folder, "opening the checkpoints"):
            (self.folder / BEST).mkdir(parents=True, exist_ok=True)
            self._latest = _manager(self.folder, keep)
            self._best = _manager(self.folder / BEST, 2)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except DataError as another:
            if error is None:
                raise
            error.add_note(str(another))  # most likely its consequence: do not hide the first

    @property
    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    @property
    def best_steps(self) -> list[int]:
        """The steps whose variables are kept as the best, the best last."""
        return sorted(self._best.all_steps())

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint of `state.step`; returns once the arrays are copied.

        Waits for the best first: no record on disk names a best score without its weights.

        Args:
          state: may be donated as soon as this returns.
          meta: anything JSON can hold.

        Raises DataError, naming the folder, if this or the write before it failed.
        """
        with naming(self.folder, f"writing the checkpoint of step {self._writing}", self):
            self._latest.wait_until_finished()  # so that a late failure is not put down to this
        with naming(self.folder / BEST, "writing the best checkpoint", self):
            self._best.wait_until_finished()
        self._writing = step = int(state.step)
        with naming(self.folder, f"writing the checkpoint of step {step}", self):
            saved = self._latest.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables(state)),
                    training=ocp.args.StandardSave(training_arrays(state)),
                    meta=_meta(meta, self.folder),
                ),
            )
        check_saved(saved, self.folder, step)

    def save_best(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts writing the variables of `state` as the best so far; see `save`."""
        step = int(state.step)
        if step in self._best.all_steps():  # the step of the resume, validated again
            return
        if jax.process_count() > 1:  # the barriers of two writings at once have the same names
            with naming(self.folder, f"writing the checkpoint of step {self._writing}", self):
                self._latest.wait_until_finished()
        with naming(self.folder / BEST, f"writing the best checkpoint, of step {step}", self):
            saved = self._best.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables(state)),
                    meta=_meta(meta, self.folder),
                ),
            )
        check_saved(saved, self.folder / BEST, step)

    def wait(self) -> None:
        """Returns once everything is on disk. Raises DataError if it could not be written."""
        with naming(self.folder, f"writing the checkpoint of step {self._writing}", self):
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def close(self) -> None:
        """Waits for the writing and lets go of the folders."""
        with naming(self.folder, f"writing the checkpoint of step {self._writing}", self):
            self._latest.close()
            self._best.close()

    def settle(self) -> None:
        """Waits for what still runs in the background after a failure, and forgets how it ended."""
        for manager in (self._latest, self._best):
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                manager.wait_until_finished()

    def restore_latest(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, as a training state and its record.

        A checkpoint that is damaged or cannot be read is reported on stderr, set aside as
        `checkpoints/unreadable-<step>`, and the one before it taken; damaged best checkpoints are
        set aside too. Best checkpoints of later steps are removed: those steps will be made again.

        Args:
          state: a state of the same structure, arrays or `jax.ShapeDtypeStruct` with shardings:
            where the restored arrays go, whatever devices wrote them.

        Returns:
          None if the run has no checkpoint. Raises DataError if none can be read.
        """
        abstract = sharding.abstract_like(state)
        failures = []
        newest_first = self.steps[::-1]
        damaged = find_damaged(self.folder, newest_first, until_good=True)
        for step in newest_first:
            if step in damaged:
                failures.append((step, damaged[step]))
                continue
            try:
                restored = self._latest.restore(
                    step,
                    args=ocp.args.Composite(
                        variables=ocp.args.StandardRestore(variables(abstract)),
                        training=ocp.args.StandardRestore(training_arrays(abstract)),
                        meta=ocp.args.JsonRestore(),
                    ),
                )
                check_record(restored.meta, self.folder / str(step))
            except Exception as error:  # whatever a torn file makes Orbax raise
                failures.append((step, f"{type(error).__name__}: {error}"))
                continue
            _set_aside(self._latest, self.folder, failures)
            self._forget_best_after(step)
            return from_checkpoint(restored.variables, restored.training), restored.meta
        if failures:
            lines = "\n".join(f"  step {step}: {why}" for step, why in failures)
            raise DataError(
                f"{self.folder}: none of the checkpoints can be read for this model:\n{lines}\n"
                "Start in a new run folder, or put back the config that wrote them."
            )
        self._forget_best_after(0)
        return None

    def _forget_best_after(self, step: int) -> None:
        folder = self.folder / BEST
        with naming(folder, f"removing best checkpoints of steps after {step}"):
            for lost in self.best_steps:
                if lost > step:
                    self._best.delete(lost)
        _set_aside(self._best, folder, list(find_damaged(folder, self.best_steps).items()))


def _set_aside(
    manager: ocp.CheckpointManager, folder: Path, failures: list[tuple[int, str]]
) -> None:
    """Renames checkpoints that cannot be used, and says so, for `(step, why)` each."""
    if not failures:
        return
    for step, why in failures:
        aside = folder / f"unreadable-{step}"
        if jax.process_index() == 0:
            print(
                f"{folder / str(step)}: this checkpoint cannot be read ({why}); it is kept as "
                f"{aside.name} and the one before it is used",
                file=sys.stderr,
            )
            with naming(folder, "setting an unreadable checkpoint aside"):
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier failure
                (folder / str(step)).rename(aside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"unreadable checkpoints of {folder}")
    manager.reload()


def load_variables(
    workdir: str | os.PathLike, *, abstract: Any = None, best: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables to evaluate: the slow weights of the best checkpoint, else of the latest.

    Args:
      workdir: the run folder.
      abstract: `{"params": ..., "batch_stats": ...}` of arrays or `jax.ShapeDtypeStruct`, the
        model's own shapes; where they carry a sharding the arrays go there, else to the default
        device. None trusts the checkpoint.
      best: False takes the latest.

    Returns:
      `{"params", "batch_stats"}` and the checkpoint's record (`step`, `epoch`, `score`, `config`).
      A damaged checkpoint is reported on stderr and the one before it taken.

    Raises DataError if there is no checkpoint, every one is damaged, or it does not fit the model.
    """
    root = Path(workdir).absolute() / CHECKPOINTS
    if not best and finished(workdir).get("weights") == BEST:
        raise DataError(
            f"{root}: of this run only the best weights were kept, as its train.keep_state says; "
            "give --config.train.choose=best"
        )
    damaged = []
    for folder in (root / BEST, root) if best else (root,):
        if not folder.is_dir():
            continue
        with naming(folder, "reading a checkpoint"):
            manager = _manager(folder, None, read_only=True)
            try:
                for step in sorted(manager.all_steps(), reverse=True):
                    wrong = find_damaged(folder, [step]).get(step)
                    try:
                        if not wrong:
                            return _load(manager, folder, step, abstract)
                    except DataError:
                        raise
                    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
                        # What Orbax makes of a part that is not there. Of many processes each
                        # would have to know what the others saw.
                        if jax.process_count() > 1:
                            raise
                        wrong = f"{type(error).__name__}: {error}"
                    damaged.append(f"{folder / str(step)}: damaged, not used: {wrong}")
                    if jax.process_index() == 0:
                        print(damaged[-1], file=sys.stderr)
            finally:
                manager.close()
    if damaged:
        raise DataError("no checkpoint can be used:\n  " + "\n  ".join(damaged))
    if folds := sorted(Path(workdir).glob(f"fold_*/{CHECKPOINTS}")):
        raise DataError(
            f"{root}: no checkpoint found; this is the folder of a cross-validation: give one of "
            f"its runs, such as {folds[0].parent}"
        )
    raise DataError(f"{root}: no checkpoint found; train first, or give the folder of a run")


def which(record: Mapping[str, Any]) -> str:
    """Kind of a checkpoint by its record: "best" or "last"."""
    return "best" if "score" in record else "last"


def described(record: Mapping[str, Any]) -> str:
    """Name of weights by their checkpoint's record: "the best weights, of step 12"."""
    return f"the {which(record)} weights, of step {record['step']}"


def _meta(meta: Mapping[str, Any], folder: Path) -> Any:
    """The item `meta`; a checkpoint is passed on, so that its config names no folders."""
    meta = dict(meta)
    if "config" in meta:
        meta["config"] = without_paths(meta["config"], [folder])
    return ocp.args.JsonSave(meta)


def _load(
    manager: ocp.CheckpointManager, folder: Path, step: int, abstract: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    metadata = manager.item_metadata(step)["variables"]
    if not jax.tree.leaves(getattr(metadata, "tree", metadata)):
        raise ValueError("it does not say which variables there are")
    target = _placed(metadata, abstract, folder / str(step))
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            variables=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        ),
    )
    check_record(restored.meta, folder / str(step))
    return restored.variables, restored.meta


class _Summed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder in which a checkpoint is written; gets its checksums before it gets its name."""

    async def finalize(self, *args, **kwargs) -> None:
        await asyncio.to_thread(checksums.write, self.get(), without=NOTES)
        await super().finalize(*args, **kwargs)
        # The checkpoint is complete. That file holds the path, and checkpoints are passed on.
        note = Path(self.get_final()) / ocp.path.atomicity.COMMIT_SUCCESS_FILE
        with contextlib.suppress(OSError):
            await asyncio.to_thread(write_text, note, "The checkpoint is complete.\n")


def _manager(folder: Path, keep: int | None, *, read_only: bool = False) -> ocp.CheckpointManager:
    logging.getLogger("absl").addFilter(_not_orbax)
    together = _together()
    handlers = {
        "variables": ocp.StandardCheckpointHandler(multiprocessing_options=together),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=together),
    }
    if folder.name != BEST:
        handlers["training"] = ocp.StandardCheckpointHandler(multiprocessing_options=together)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        save_interval_steps=0 if read_only else 1,
        cleanup_tmp_directories=not read_only,
        create=False,  # not possible for named processes; the folder is there
        read_only=read_only,
        temporary_path_class=_Summed,
        multiprocessing_options=together,
    )
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _together() -> ocp.options.MultiprocessingOptions:
    """Barriers of processes while they write.

    Those that are named do so through the runtime's service. Otherwise it would be on their
    devices, and behind what is computed there: a stop saves while a validation is compiled.
    """
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())),
        barrier_sync_key_prefix=f"manager_{next(_MANAGERS)}",  # a barrier's name may not come again
    )


def _not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs every failure with tracebacks from many threads, and raises it as well."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _placed(metadata: Any, abstract: Any, folder: Path) -> Any:
    """Targets to restore into: the checkpoint's shapes, where `abstract` wants them."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found = getattr(metadata, "tree", metadata)
    found = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=default), found)
    if abstract is None:
        return found
    abstract = {"params": abstract["params"], "batch_stats": abstract.get("batch_stats", {})}
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, "sharding", None) or default
        ),
        abstract,
    )
    if _shapes(found) != _shapes(wanted):
        differ = sorted(set(_shapes(found).items()) ^ set(_shapes(wanted).items()))
        raise DataError(
            f"{folder}: the checkpoint is of another model; tensors that differ: "
            + ", ".join(f"{path} {shape}" for path, shape in differ[:6])
            + ". Use the config that wrote it (config.json of the run folder)"
        )
    return wanted


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
