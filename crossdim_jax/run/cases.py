"""Cases of a run: split, decoded, given to training, and held out from it."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from crossdim_jax.challenges import patients
from crossdim_jax.data import cache, pipeline, splits
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.run import content
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import distributed, sharding
from crossdim_jax.runtime.distributed import wait_for_all
from crossdim_jax.storage import run_folder
from crossdim_jax.training import loop


def prepare_cases(
    experiment: Experiment,
) -> tuple[splits.Split, list[cache.CachedCase], list[cache.CachedCase]]:
    """The split, and the decoded cases of its two sides; those that are not used stay as they are.

    Raises:
      ManyErrors: some cases are faulty; all of them are named, whatever is wrong with each.
      DataError: the run goes on, and its cases have changed, see `make_split`, `content.check`.
    """
    data = experiment.data
    failures: list[tuple[str, str]] = []
    files = experiment.cases(failures)
    if not failures:  # raises before anything is decoded
        split = make_split(experiment, files)
        files = [case for case in files if case.id not in set(split.unused)]
        if run_folder.has_checkpoint(experiment.workdir):
            content.check(experiment, files)
    cached = cache.build(
        experiment.challenge,
        files,
        data.cache,
        dtype=data.cache_dtype,
        num_threads=data.num_threads,
        num_processes=data.num_processes,
        share=(jax.process_index(), jax.process_count()),
        wait=lambda: wait_for_all("cases"),
        progress=jax.process_index() == 0,
        failures=failures,
    )
    split = dataclasses.replace(split, **content.check(experiment, files))
    _say_notes(cached)
    if experiment.planned is None and not (experiment.workdir / run_folder.PLAN).exists():
        _say_padding(cached, data.patch)
    by_id = {case.id: case for case in cached}
    return split, [by_id[i] for i in split.train], [by_id[i] for i in split.validation]


def make_split(experiment: Experiment, files: Sequence[CaseFiles]) -> splits.Split:
    """Split of the cases as the config says; that of the run folder, if there is one.

    Raises:
      DataError: the data root no longer holds the cases that the run was started with.
    """
    path = experiment.workdir / run_folder.SPLITS
    root = experiment.data.root
    for group in patients.suspects(files)[:3]:
        _say(
            f"{', '.join(group[:5])} look like scans of one patient and are taken for different "
            f"ones; if they are of one, say so in {root}/{patients.FILE}: "
            '{"case id": "patient", ...}'
        )
    split = splits.make(
        files,
        **experiment.data.split,
        official=lambda: experiment.challenge.official_split(
            root, fold=experiment.data.split.get("fold", 0)
        ),
    )
    if not run_folder.has_checkpoint(experiment.workdir):
        return split
    if not path.exists():
        _say(
            f"warning: {path}: was not there; the cases are split anew, as the config says. If "
            "they are others than at the start, some that are held out now have been trained on"
        )
        return split
    recorded = splits.Split.read(path)
    existing = {case.id for case in files}
    expected = {*recorded.train, *recorded.watched, *recorded.unused}
    if existing != expected:
        missing, new = sorted(expected - existing), sorted(existing - expected)
        raise DataError(
            f"{path}: the split of this run no longer fits the cases in "
            f"{root}: {len(missing)} gone {missing[:5]}, {len(new)} new "
            f"{new[:5]}. Put the cases back, or start a new run with another --workdir."
        )
    if recorded != split:
        _say(_other_split(recorded, files, path))
    return recorded


def _other_split(recorded: splits.Split, files: Sequence[CaseFiles], path: Any) -> str:
    """Warning that today's rules would split the same cases otherwise."""
    patient = {case.id: case.patient for case in files}
    both = {patient[i] for i in recorded.train} & {patient[i] for i in recorded.watched}
    separates = (
        f"; it separates scans of {len(both)} patients ({', '.join(sorted(both)[:5])}), so that "
        "the scores of held-out cases may be too good"
        if both
        else ""
    )
    return (
        f"warning: {path}: this run goes on with the split that it was started with, which is not "
        f"what these cases would be split into today{separates}. A new run is split anew."
    )


def check_folds(folds: Sequence[Experiment]) -> None:
    """Raises DataError unless every case is held out by exactly one fold.

    Folds that were begun before the rules of who is whose patient changed go on with their own
    split, and new ones do not fit them. An official split may let cases train in every fold; these
    are never scored, which is said.
    """
    failures: list[tuple[str, str]] = []
    files = folds[0].cases(failures)
    if failures:
        return  # reported, all of them, by the first fold
    held = Counter(i for fold in folds for i in make_split(fold, files).evaluated)
    wrong = sorted(case.id for case in files if held[case.id] != 1)
    if wrong and folds[0].data.split["kind"] == "official" and max(held.values()) == 1:
        _say(
            f"warning: {len(wrong)} cases are held out by no fold of the official split "
            f"({', '.join(wrong[:5])}): they train in every fold, and are not scored"
        )
    elif wrong:
        raise DataError(
            f"{folds[0].workdir.parent}: {len(wrong)} cases are held out by several folds or by "
            f"none ({', '.join(wrong[:5])}): some of the folds were begun with another split, or "
            "the split in the data root names them so; correct that, and start all of them anew "
            "with another --workdir"
        )


def _say_notes(cached: Sequence[cache.CachedCase]) -> None:
    """Says the notes on how cases were prepared, each once with the cases that have it."""
    by_note: dict[str, list[str]] = {}
    for case in cached:
        if case.note:
            by_note.setdefault(case.note, []).append(case.id)
    for note, ids in by_note.items():
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        _say(f"warning: {len(ids)} of {len(cached)} cases ({some}): {note}")


def _say_padding(cached: Sequence[cache.CachedCase], patch: Sequence[int]) -> None:
    """Warns of patches that hold more padding than image."""
    if len(patch) != 3 or not cached:
        return
    filled = [np.minimum(case.shape, patch).prod() / np.prod(patch) for case in cached]
    if (fraction := float(np.median(filled))) < 0.5:
        middle = np.median([case.shape for case in cached], axis=0).astype(int).tolist()
        _say(
            f"warning: patches of {tuple(patch)} are mostly padding: the median case, about "
            f"{tuple(middle)} voxels, fills {fraction:.0%} of one; a smaller --config.data.patch "
            "wastes less (fewer slices than 32 need smaller config.model.depth_strides)"
        )


@functools.cache
def _say(text: str) -> None:
    """Says a text once: several modes of one program look for the same cases."""
    distributed.say(text)


def train_data(
    experiment: Experiment,
    training: Sequence[cache.CachedCase],
    batch_size: int,
    *,
    num_threads: int | None = None,
) -> Iterable[Mapping[str, Any]]:
    """Endless batches of training patches, this process's part; the same for the same config.

    num_threads: the config's unless given.
    """
    data = experiment.data
    return pipeline.train_dataset(
        training,
        experiment.challenge,
        patch=data.patch,
        batch_size=batch_size,
        seed=experiment.seed,
        foreground=data.foreground,
        num_threads=data.num_threads if num_threads is None else num_threads,
        positions=sharding.batch_positions(experiment.mesh, batch_size),
    )


def steps_per_epoch(experiment: Experiment, training: Sequence[cache.CachedCase]) -> int:
    """Steps of an epoch: as the config says, or as many as show every case or slice once."""
    options = experiment.training
    if options.steps_per_epoch is not None:
        return options.steps_per_epoch
    shown = len(pipeline.elements(training, experiment.data.patch))
    return loop.steps_per_epoch(shown, options.batch_size)


def held_out(experiment: Experiment) -> list[CaseFiles]:
    """Cases that were not trained on, to evaluate; none if all were.

    Says which of them are not what they were when the run was started.
    """
    path = experiment.workdir / run_folder.SPLITS
    if not path.exists():
        raise DataError(f"{path}: not found; give the --workdir of a run that was trained")
    files = {case.id: case for case in experiment.cases()}
    expected = splits.Split.read(path).evaluated
    if missing := [i for i in expected if i not in files]:
        raise ManyErrors(
            f"{experiment.data.root}: held-out cases are missing; put them back",
            [(i, "not found") for i in missing],
        )
    held = [files[i] for i in expected]
    if jax.process_index() == 0 and (changed := content.changes(experiment, held)):
        _say(
            f"warning: {len(changed)} held-out cases in {experiment.data.root} are not what "
            f"this run was started with: {content.listed(changed)}"
        )
    return held
