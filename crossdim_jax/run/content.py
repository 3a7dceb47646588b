"""Content of the cases of a run: recorded with its split, compared when it goes on or is evaluated.

A split knows the cases by name. Other images under the same names are another data set.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crossdim_jax.data import splits
from crossdim_jax.data.digests import Content, Digests
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import distributed
from crossdim_jax.storage import run_folder


def check(experiment: Experiment, files: Sequence[CaseFiles]) -> dict[str, dict]:
    """Compares the cases with those that a run, which goes on, was started with.

    A run from before there was a record is taken as it is.

    Returns:
      `contents` and `accepted` of the run's `splits.Split`.

    Raises:
      DataError: some are others now, and `changed_cases` is not "accept".
    """
    contents = _contents(experiment, files)
    resumed = run_folder.has_checkpoint(experiment.workdir)
    before = _recorded(experiment) if resumed else splits.Split([], [])
    changed = _differences(before.contents, contents)
    if changed:
        message = (
            f"{experiment.workdir / run_folder.SPLITS}: {len(changed)} of {len(files)} cases in "
            f"{experiment.data.root} are not what this run was started with: "
            f"{listed(changed)}"
        )
        if experiment.data.changed_cases == "refuse":
            raise DataError(
                f"{message}. Put the files back, start a new run with another --workdir, or go on "
                "with what is there now by --config.data.changed_cases=accept"
            )
        distributed.say(f"warning: {message}; going on, as config.data.changed_cases says")
    return {"contents": contents, "accepted": before.accepted | changed}


def changes(experiment: Experiment, files: Sequence[CaseFiles]) -> dict[str, str]:
    """Case id -> what of it is not as recorded: "image", "label" or "image and label"."""
    before = _recorded(experiment).contents
    now = _contents(experiment, [case for case in files if case.id in before])
    return _differences(before, now)


def _differences(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> dict[str, str]:
    parts = {
        case: [part for part in ("image", "label") if now[case][part] != before[case][part]]
        for case in now
        if case in before
    }
    return {case: " and ".join(changed) for case, changed in parts.items() if changed}


def listed(changed: Mapping[str, str], most: int = 10) -> str:
    """`changes` in words: "the image of a, b; the label of c"."""
    groups: dict[str, list[str]] = {}
    for case, parts in sorted(changed.items()):
        groups.setdefault(parts, []).append(case)
    return "; ".join(
        f"the {parts} of {', '.join(cases[:most])}{', ...' if len(cases) > most else ''}"
        for parts, cases in groups.items()
    )


def provenance(experiment: Experiment, files: Sequence[CaseFiles]) -> dict[str, str]:
    """Changes of contents that a reader of the scores of `files` must know; empty for none."""
    result = {}
    if changed := changes(experiment, files):
        result["changed_since_training"] = listed(changed)
    if accepted := _recorded(experiment).accepted:
        result["changed_during_training"] = listed(accepted)
    return result


def _contents(experiment: Experiment, files: Sequence[CaseFiles]) -> dict[str, dict]:
    """Content by case id, without cases that cannot be read: reading them says why."""
    folder = Path(experiment.data.cache)
    record = _digests(folder if folder.is_dir() else None)

    def content(case: CaseFiles) -> Content | None:
        with contextlib.suppress(DataError):
            return record.of_case(case)

    with ThreadPoolExecutor(max(1, experiment.data.num_threads)) as pool:
        contents = list(pool.map(content, files))
    record.save()
    return {
        case.id: {"image": content.image, "label": content.label}
        for case, content in zip(files, contents, strict=True)
        if content is not None
    }


@functools.cache
def _digests(folder: Path | None) -> Digests:
    """Digests for the whole process: without a folder to keep them, files are read once."""
    return Digests(folder)


def _recorded(experiment: Experiment) -> splits.Split:
    path = experiment.workdir / run_folder.SPLITS
    return splits.Split.read(path) if path.exists() else splits.Split([], [])
