"""Fingerprint of a data set: spacings, sizes, and intensities of the foreground, for a plan.

A case is read once, and what was found is remembered by the content of its files. Of its foreground
intensities it keeps mean, sd, extremes and evenly spaced quantiles, not the voxels: memory stays
bounded, nothing is drawn at random, and each case counts the same however large its structures
are, as in nnU-Net, which draws equally many voxels of each.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data import digests, workers
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.imaging import preprocess, spacing
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.runtime.progress import bar
from crossdim_jax.storage import records
from crossdim_jax.storage.files import write_text, writing

FILE = "fingerprint.json"
QUANTILES = 200  # of a case's foreground, at (i + 1/2) / QUANTILES
VERSION = 1  # raise it when the meaning of the remembered numbers changes
MOST_VOXELS = 4_000_000  # of a case's foreground; of more, every second, third, ... is taken
_SLAB = 4_000_000  # voxels times regions whose masks are held at a time
# What of a challenge's fingerprint changes neither images as they are read nor labels.
_PREPARATION = ("intensities", "normalisation", "outside", "size", "spacing_mm")
_REMEDY = "remove the file: it is made anew"


@dataclasses.dataclass(frozen=True)
class Intensities:
    """Foreground intensities of one channel of a case.

    Attributes:
      mean, sd, minimum, maximum: over all voxels.
      quantiles: `QUANTILES` of them, ascending.
    """

    mean: float
    sd: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one case.

    Attributes:
      spacing_mm: (z, y, x).
      full_shape: (z, y, x) as read.
      shape: (z, y, x) without the blank outside of masked images.
      masked: True for each channel that has such an outside.
      foreground: voxels of the foreground.
      intensities: of each channel; () where there is no foreground.
    """

    spacing_mm: tuple[float, ...]
    full_shape: tuple[int, ...]
    shape: tuple[int, ...]
    masked: tuple[bool, ...]
    foreground: int
    intensities: tuple[Intensities, ...]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of a data set.

    Attributes:
      channels: names of the image channels, in order.
      classes: channels that a network predicts, a background included.
      cases: {case id: what was measured}, in the order of the cases.
      regions: True if classes overlap.
    """

    channels: tuple[str, ...]
    classes: int
    cases: Mapping[str, Measured]
    regions: bool = False

    @property
    def spacings_mm(self) -> np.ndarray:
        """(n, 3) spacing (z, y, x) of each case."""
        return np.array([case.spacing_mm for case in self.cases.values()], float)

    def shapes(self, target_mm: Sequence[float] | None) -> np.ndarray:
        """(n, 3) cropped shape (z, y, x) of each case, resampled to a spacing."""
        return np.array(
            [
                spacing.grid(case.shape, case.spacing_mm, target_mm).shape
                for case in self.cases.values()
            ]
        )

    @property
    def masked(self) -> tuple[int, ...]:
        """Number of cases in which each channel is masked."""
        return tuple(
            sum(case.masked[c] for case in self.cases.values()) for c in range(len(self.channels))
        )

    def intensities(self) -> dict[str, dict[str, float]]:
        """Foreground intensities of each channel: {"0": {"mean": ..., "sd": ..., ...}, ...}.

        Mean, sd, median, minimum, maximum, percentile_00_5, percentile_99_5; each case has the same
        weight. Empty if no case has a foreground.
        """
        known = [case.intensities for case in self.cases.values() if case.intensities]
        if not known:
            return {}
        return {str(c): _pooled([case[c] for case in known]) for c in range(len(self.channels))}

    def record(self) -> dict[str, Any]:
        """JSON object that says the same, in plain numbers, for a run's folder."""
        return {
            "channels": list(self.channels),
            "classes": self.classes,
            "intensities": self.intensities(),
            "cases": {
                name: {
                    "spacing_mm": list(case.spacing_mm),
                    "full_shape": list(case.full_shape),
                    "shape": list(case.shape),
                    "masked": list(case.masked),
                    "foreground": case.foreground,
                }
                for name, case in self.cases.items()
            },
        }


def _pooled(cases: Sequence[Intensities]) -> dict[str, float]:
    means = np.array([case.mean for case in cases])
    mean = means.mean()
    # Of a mixture in equal parts: the variance within plus that between.
    variance = np.mean([case.sd**2 for case in cases]) + np.mean((means - mean) ** 2)
    quantiles = np.concatenate([case.quantiles for case in cases])
    low, median, high = np.percentile(quantiles, (0.5, 50, 99.5))
    found = {
        "mean": mean,
        "sd": np.sqrt(variance),
        "median": median,
        "minimum": min(case.minimum for case in cases),
        "maximum": max(case.maximum for case in cases),
        "percentile_00_5": low,
        "percentile_99_5": high,
    }
    return {name: float(value) for name, value in found.items()}


def measure(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    *,
    folder: str | os.PathLike | None = None,
    num_threads: int = 2,
    num_processes: int = 0,
    progress: bool = True,
    failures: Sequence[tuple[str, str]] = (),
) -> Fingerprint:
    """Reads every labelled case, unless it is remembered, and measures it.

    Args:
      challenge: reads the cases.
      files: those to be trained on, not those held out.
      folder: of the record `FILE`, in which several data sets and runs may remember; created if
        need be. None remembers nothing.
      num_threads, num_processes: that read cases at the same time, see `workers.run`.
      progress: a bar on stderr, if that is a terminal.
      failures: (case id, message) of cases that failed when they were looked for.

    Raises:
      ManyErrors: some cases are faulty; every one has been tried.
      DataError: there is no case, or a process was killed.
    """
    if not files:
        raise DataError("there is no labelled case to plan from")
    if folder is not None:
        with writing(folder, "the fingerprint"):
            Path(folder).mkdir(parents=True, exist_ok=True)
    contents = digests.Digests(folder)
    path = None if folder is None else Path(folder) / FILE
    remembered = _read(path)
    keys, found, faults = {}, {}, list(failures)
    for case in files:
        try:
            keys[case.id] = key(challenge, case, contents.of_case(case))
        except DataError as error:
            faults.append((case.id, str(error)))
            continue
        if keys[case.id] in remembered:
            found[case.id] = remembered[keys[case.id]]
    contents.save()
    missing = [case for case in files if case.id in keys and case.id not in found]
    work = [functools.partial(_attempt, challenge, case) for case in missing]
    with bar(
        description="measuring cases", enabled=progress, terminal_only=True, total=len(missing)
    ) as shown:
        numbers = {"threads": num_threads, "processes": num_processes if len(missing) > 1 else 0}
        for index, result in workers.run(work, **numbers):
            shown.update()
            if isinstance(result, str):
                faults.append((missing[index].id, result))
            else:
                found[missing[index].id] = result
    _remember(path, {keys[case.id]: found[case.id] for case in missing if case.id in found})
    if faults:
        raise ManyErrors(
            f"{len(faults)} of {len(files) + len(failures)} cases cannot be measured; repair or "
            "remove them",
            sorted(faults),
        )
    return Fingerprint(
        tuple(challenge.modalities),
        len(challenge.classes),
        {case.id: found[case.id] for case in files},
        challenge.activation == "sigmoid",
    )


def key(challenge: Challenge, files: CaseFiles, content: digests.Content) -> str:
    """Digest of all that the measurement of a case depends on."""
    settings = {k: v for k, v in challenge.fingerprint().items() if k not in _PREPARATION}
    everything = {
        "version": [VERSION, QUANTILES],
        "sources": [content.image, content.label, files.kind],
        "challenge": settings,
        "outside": preprocess.PARAMETERS["outside"],
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _attempt(challenge: Challenge, files: CaseFiles) -> Measured | str:
    """The measurement, or why there is none: one faulty case does not stop the others."""
    try:
        return measure_case(challenge, files)
    except DataError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def measure_case(challenge: Challenge, files: CaseFiles) -> Measured:
    """Reads and measures one case. Raises what `Challenge.load` does."""
    case = challenge.load(files)
    inside, unmasked = preprocess.inside(case.image)
    shape = full_shape = case.image.shape[:3]
    if inside.any():
        bbox = preprocess.crop_to_inside(inside)
        shape = tuple(stop - start for start, stop in bbox)
    if case.label is None:
        raise DataError("has no label")
    foreground = _foreground(challenge, case.label)
    count = int(np.count_nonzero(foreground))
    channels = range(case.image.shape[-1])
    return Measured(
        spacing_mm=tuple(case.spacing_mm),
        full_shape=tuple(full_shape),
        shape=shape,
        masked=tuple(c not in unmasked for c in channels),
        foreground=count,
        intensities=tuple(_intensities(case.image[foreground, c]) for c in channels if count),
    )


def _foreground(challenge: Challenge, label: np.ndarray) -> np.ndarray:
    """Voxels of any region, (z, y, x) bool; some slices at a time, there may be many regions."""
    step = max(1, _SLAB // (label[0].size * len(challenge.regions)))
    slabs = [label[z : z + step] for z in range(0, len(label), step)]
    return np.concatenate([challenge.masks(slab).any(-1) for slab in slabs])


def _intensities(values: np.ndarray) -> Intensities:
    values = values[:: -(-values.size // MOST_VOXELS)].astype(np.float64)
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return Intensities(
        mean=float(values.mean()),
        sd=float(values.std()),
        minimum=float(values.min()),
        maximum=float(values.max()),
        quantiles=tuple(float(np.float32(q)) for q in np.quantile(values, places)),
    )


# ------------------------------------------------------------------------------- the record


def _is_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(records.is_number, value))


def _of_record(entry: Any) -> Measured:
    """Raises KeyError, TypeError or ValueError if an entry is not what `_remember` wrote."""
    lengths = {"spacing_mm": 3, "full_shape": 3, "shape": 3, "masked": len(entry["masked"])}
    numbers = [entry["foreground"]]
    for name, length in lengths.items():
        if name != "masked" and not _is_numbers(entry[name], length):
            raise ValueError(name)
    channels = []
    for channel in entry["intensities"]:
        if not _is_numbers(channel["quantiles"], QUANTILES):
            raise ValueError("quantiles")
        one = Intensities(**channel | {"quantiles": tuple(channel["quantiles"])})
        numbers += [one.mean, one.sd, one.minimum, one.maximum]
        channels.append(one)
    if not all(map(records.is_number, numbers)) or min(entry["shape"]) < 1:
        raise ValueError("numbers")
    lists = {name: tuple(entry[name]) for name in lengths}
    return Measured(**lists, foreground=entry["foreground"], intensities=tuple(channels))


def _read(path: Path | None) -> dict[str, Measured]:
    """Measurements kept from before; a record that cannot be read costs time, no more."""
    if path is None or not path.exists():
        return {}
    try:
        record = records.read_record(path, remedy=_REMEDY)
        return {name: _of_record(entry) for name, entry in record.items()}
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _remember(path: Path | None, new: Mapping[str, Measured]) -> None:
    """Adds to the record what other runs may have added to as well."""
    if path is None or not new:
        return
    everything = _read(path) | dict(new)
    record = {name: dataclasses.asdict(measured) for name, measured in everything.items()}
    with writing(path, "the fingerprint"):
        write_text(path, json.dumps(record))
