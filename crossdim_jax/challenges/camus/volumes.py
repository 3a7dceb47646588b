"""Volumes and ejection fraction of each patient from label files of CAMUS."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.challenges.camus.layouts import FILMS, STILLS, VIEWS, Info, info_of
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.imaging.nifti import Geometry
from crossdim_jax.metrics import biplane
from crossdim_jax.metrics.biplane import Volumes
from crossdim_jax.storage.files import write_text, writing
from crossdim_jax.storage.plain import csv_text

logger = logging.getLogger(__name__)

CAVITY = 1  # the label value
QUANTITIES = {"EF": "ef_percent", "EDV": "edv_ml", "ESV": "esv_ml"}
UNITS = {"EF": "%", "EDV": "mL", "ESV": "mL"}

Read = Callable[[Path], tuple[np.ndarray, Geometry]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Volumes of one patient from label files.

    Attributes:
      volumes: {method: volumes}, see `metrics.biplane.METHODS`.
      source: "stills", "half_sequence" or "sequence".
      why: the volumes are not known, or are known only so far; "" if there is nothing to say.
    """

    volumes: Mapping[str, Volumes]
    source: str
    why: str


def by_patient(items: Sequence[tuple[CaseFiles, Path]]) -> dict[str, list[tuple[CaseFiles, Path]]]:
    """Cases with a view and their labels, {patient: [...]}; in the order of the names."""
    patients: dict[str, list[tuple[CaseFiles, Path]]] = {}
    for files, path in items:
        if files.kind:
            patients.setdefault(files.patient, []).append((files, path))
    return dict(sorted(patients.items()))


def measure(patient: str, items: Sequence[tuple[CaseFiles, Path]], read: Read) -> Measured:
    """Volumes of one patient by both methods, from stills where all four are there, else films.

    Which frames of a film are ED and ES says the cfg beside it; without one, or where it names
    frames that are not there, they are those of the largest and the smallest cavity.

    Args:
      patient: its name, for warnings.
      items: its cases with a label file each.
      read: of a label file.
    """
    there = {files.kind: (files, path) for files, path in items}
    sources = {"stills": STILLS, **{film: (film,) for film in FILMS}}
    wanted = {name: [f"{v}_{what}" for v in VIEWS for what in s] for name, s in sources.items()}
    complete = [name for name, kinds in wanted.items() if all(kind in there for kind in kinds)]
    partly = [name for name, kinds in wanted.items() if any(kind in there for kind in kinds)]
    source = (complete or partly)[0]
    masks: dict[str, tuple[np.ndarray, tuple[float, ...]]] = {}
    notes = []
    for kind in wanted[source]:
        if kind not in there:
            continue
        files, path = there[kind]
        try:
            label, geometry = read(path)
        except DataError as error:
            notes.append(str(error))
            continue
        cavity, pixel_mm = label == CAVITY, geometry.spacing_mm[1:]
        if source == "stills":
            masks[kind] = (cavity[0], pixel_mm)
            continue
        ed, es, note = _frames(files, cavity)
        if note:
            notes.append(note)
        masks[f"{kind[:3]}_ED"], masks[f"{kind[:3]}_ES"] = (
            (cavity[ed], pixel_mm),
            (cavity[es], pixel_mm),
        )
    volumes, why = biplane.biplane(masks, patient)
    odd = {found.ef_percent for found in volumes.values() if not 0 <= found.ef_percent <= 100}
    if odd := {ef for ef in odd if not math.isnan(ef)}:
        notes.append(
            f"{patient}: an ejection fraction of {', '.join(f'{ef:.4g}' for ef in sorted(odd))} % "
            "cannot be; are ED and ES exchanged, or is a pixel size wrong?"
        )
        logger.warning("%s", notes[-1])
    return Measured(volumes, source, "; ".join([*notes, *([why] if why else [])]))


def _frames(files: CaseFiles, cavity: np.ndarray) -> tuple[int, int, str]:
    """Indices of ED and ES in a film, and how they were found if the cfg does not say."""
    info, n = info_of(files), len(cavity)
    if info.ed is not None and info.es is not None:
        if max(info.ed, info.es) <= n:
            return info.ed - 1, info.es - 1, ""
        said = f"its cfg names frames {info.ed} and {info.es} of {n}"
    else:
        said = "no cfg names ED and ES"
    area = cavity.sum((1, 2))
    note = f"{files.id}: {said}; they are taken where the cavity is largest and smallest"
    logger.warning("%s", note)
    return int(area.argmax()), int(area.argmin()), note


def clinical(files: Sequence[CaseFiles]) -> Volumes:
    """Volumes in the cfgs of a patient, NaN where they say nothing.

    The releases write one value into both views' files; where they differ it is the mean.
    """
    infos: list[Info] = [info_of(case) for case in files]

    def stated(field: str) -> float:
        values = {value for info in infos if not math.isnan(value := getattr(info, field))}
        return float(np.mean(sorted(values))) if values else math.nan

    return Volumes(stated("edv_ml"), stated("esv_ml"), stated("ef_percent"))


def write_patients(path: Path, measured: Mapping[str, Measured]) -> Path:
    """Writes a row for each patient: EDV, ESV and EF by both methods, from what, and why not."""
    columns = [
        f"{quantity}_{method}" for method in biplane.METHODS for quantity in QUANTITIES.values()
    ]
    rows = [
        [
            patient,
            found.source,
            *(
                _cell(getattr(found.volumes[method], quantity))
                for method in biplane.METHODS
                for quantity in QUANTITIES.values()
            ),
            found.why,
        ]
        for patient, found in measured.items()
    ]
    return _write_csv(path, [["patient", "source", *columns, "note"], *rows])


def write_films(path: Path, films: Sequence[tuple[CaseFiles, Path]], read: Read) -> Path:
    """Writes a row for each frame: areas in mm^2 of cavity, myocardium and atrium.

    `from_ed` counts the frames in the order of time from 1, also where a film runs backwards.
    """
    rows: list[list[object]] = [
        ["id", "frame", "from_ed", "cavity_mm2", "myocardium_mm2", "atrium_mm2"]
    ]
    for files, source in films:
        label, geometry = read(source)
        pixel_mm2 = float(np.prod(geometry.spacing_mm[1:]))
        n, backwards = len(label), info_of(files).backwards
        for index, frame in enumerate(label):
            areas = [_cell(float((frame == value).sum() * pixel_mm2)) for value in (1, 2, 3)]
            rows.append([files.id, index + 1, n - index if backwards else index + 1, *areas])
    return _write_csv(path, rows)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, csv_text(rows))
    return path
