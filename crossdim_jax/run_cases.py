"""The cases of a run: how they are split, decoded, given to training, and held out from it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from crossdim_jax import run_folder
from crossdim_jax.challenges import CaseFiles
from crossdim_jax.data import cache, pipeline, splits
from crossdim_jax.distributed import wait_for_all
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.experiment import Experiment


def prepare_cases(
    experiment: Experiment,
) -> tuple[splits.Split, list[cache.CachedCase], list[cache.CachedCase]]:
    """The split, and the decoded cases of its two sides.

    Raises:
      ManyErrors: some cases are faulty; all of them are named, whatever is wrong with each.
    """
    config = experiment.config
    failures: list[tuple[str, str]] = []
    files = experiment.cases(failures)
    cached = cache.build(
        experiment.challenge,
        files,
        config.data.cache,
        dtype=config.data.cache_dtype,
        num_threads=config.data.num_threads,
        num_processes=config.data.get("num_processes", 0),
        share=(jax.process_index(), jax.process_count()),
        wait=lambda: wait_for_all("cases"),
        progress=jax.process_index() == 0,
        failures=failures,
    )
    split = make_split(experiment, files)
    by_id = {case.id: case for case in cached}
    return split, [by_id[i] for i in split.train], [by_id[i] for i in split.validation]


def make_split(experiment: Experiment, files: Sequence[CaseFiles]) -> splits.Split:
    """The split of the cases as the config says; that of the run folder, if there is one.

    Raises:
      DataError: the data root no longer holds the cases that the run was started with.
    """
    path = experiment.workdir / run_folder.SPLITS
    settings = {k: v for k, v in experiment.config.data.split.to_dict().items() if v is not None}
    split = splits.make(
        files,
        **settings,
        official=lambda: experiment.challenge.official_split(experiment.config.data.root),
    )
    if not (path.exists() and run_folder.has_checkpoint(experiment.workdir)):
        return split
    recorded = splits.Split.read(path)
    if recorded != split:
        there, before = (
            {case.id for case in files},
            {*recorded.train, *recorded.validation, *recorded.test},
        )
        gone, new = sorted(before - there), sorted(there - before)
        raise DataError(
            f"{path}: the split of this run no longer fits the cases in "
            f"{experiment.config.data.root}: {len(gone)} gone {gone[:5]}, {len(new)} new "
            f"{new[:5]}. Put the cases back, or start a new run with another --workdir."
        )
    return recorded


def train_data(
    experiment: Experiment,
    training: Sequence[cache.CachedCase],
    batch_size: int,
    *,
    num_threads: int | None = None,
) -> Iterable[Mapping[str, Any]]:
    """This process's part of endless batches of training patches, the same for the same config.

    `num_threads` is the config's unless given.
    """
    config = experiment.config
    return pipeline.train_dataset(
        training,
        experiment.challenge,
        patch=config.data.patch,
        batch_size=batch_size,
        seed=config.seed,
        foreground=config.data.foreground,
        num_threads=config.data.num_threads if num_threads is None else num_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def held_out(experiment: Experiment) -> list[CaseFiles]:
    """The cases of the run to evaluate, which were not trained on; none if all were."""
    path = experiment.workdir / run_folder.SPLITS
    if not path.exists():
        raise DataError(f"{path}: not found; give the --workdir of a run that was trained")
    files = {case.id: case for case in experiment.cases()}
    wanted = splits.Split.read(path).evaluated
    if gone := [i for i in wanted if i not in files]:
        raise ManyErrors(
            f"{experiment.config.data.root}: held-out cases are missing; put them back",
            [(i, "not found") for i in gone],
        )
    return [files[i] for i in wanted]
