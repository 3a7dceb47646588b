"""File layouts of both releases of CAMUS, and the content of `Info_*.cfg`.

NIfTI release: `database_nifti/patient0001/patient0001_{2CH,4CH}_{ED,ES,half_sequence}[_gt].nii.gz`,
`Info_{2CH,4CH}.cfg`, and `database_split/subgroup_{training,validation,testing}.txt`. Old release:
`training/patient0001/patient0001_{2CH,4CH}_{ED,ES,sequence}[_gt].mhd` with `.raw`, and `testing/`,
which counts its patients from 1 again. Files are known by their names: the root may be the
release, a folder of patients or one patient's.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path

from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.storage.reading import naming, read_bytes

logger = logging.getLogger(__name__)

VIEWS = ("2CH", "4CH")
STILLS = ("ED", "ES")
FILMS = ("half_sequence", "sequence")
FRAMES = {"stills": STILLS, "half_sequence": ("half_sequence",)}  # what is annotated
SUBGROUPS = ("training", "validation", "testing")
SUFFIXES = (".nii.gz", ".nii", ".mhd")  # in order of preference where several are there
_NAME = re.compile(rf"(patient\d+)_({'|'.join(VIEWS)})_({'|'.join(STILLS + FILMS)})")
_TEXT_BYTES = 1 << 16  # of a cfg or a list; real ones have some hundred
_DEPTH = 3  # folders between the root and a file: release, database, patient

Failures = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Info:
    """Content of an `Info_*.cfg`, for one view; None, "" or NaN where it says nothing.

    Attributes:
      ed, es: frames of the sequence, counted from 1 as in the file.
      n_frames: of the sequence.
      quality: "Good", "Medium" or "Poor".
      edv_ml, esv_ml, ef_percent: as measured by the cardiologist.
    """

    ed: int | None = None
    es: int | None = None
    n_frames: int | None = None
    quality: str = ""
    edv_ml: float = math.nan
    esv_ml: float = math.nan
    ef_percent: float = math.nan

    @property
    def backwards(self) -> bool:
        """True if the frames run from the end of systole to the end of diastole."""
        return self.ed is not None and self.es is not None and self.ed > self.es


# Key in the file, in small letters -> field of Info, type. The releases name the volumes otherwise.
_KEYS = {
    "ed": ("ed", int),
    "es": ("es", int),
    "nbframe": ("n_frames", int),
    "imagequality": ("quality", str),
    "ef": ("ef_percent", float),
    "lvef": ("ef_percent", float),
    "lvedv": ("edv_ml", float),
    "lvesv": ("esv_ml", float),
}


def read_info(path: Path) -> Info:
    """Reads an `Info_*.cfg`, lines of `Key: value`.

    Other keys are passed over, and so are, with a warning that names the line, lines that cannot be
    understood: real files have some. A file that is not there says nothing.

    Raises DataError if the file is there and cannot be read.
    """
    try:
        text = read_bytes(path, limit=_TEXT_BYTES).decode("utf-8", errors="replace")
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Info()
        raise
    found: dict[str, object] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not line.strip():
            continue
        name, kind = _KEYS.get(key.lower(), (None, str))
        try:
            if not colon or not value:
                raise ValueError("expected 'Key: value'")
            if name is not None:
                found[name] = _value(kind, value)
        except (ValueError, OverflowError) as error:
            logger.warning("%s: line %d, %r, is passed over (%s)", path, number, line[:60], error)
    for name, most in (("ef_percent", 100), ("edv_ml", 2000), ("esv_ml", 2000)):
        if found.get(name, 0) > most:
            logger.warning("%s: %s = %g cannot be; passed over", path, name, found.pop(name))
    for name in ("ed", "es", "n_frames"):
        if found.get(name, 1) < 1:
            logger.warning("%s: %s = %s is no frame; frames count from 1", path, name, found[name])
            del found[name]
    return Info(**found)


def _value(kind: type, text: str) -> object:
    """Value of a field. Raises ValueError if it is no number, infinite, NaN or negative."""
    if kind is str:
        return text
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError("expected a number from 0")
    if kind is int and number % 1:  # frames are sometimes written as 12.0
        raise ValueError("expected a whole number")
    return kind(number)


def info_of(files: CaseFiles) -> Info:
    """Content of the cfg beside a case's image; empty where a case has no view."""
    view = files.kind.partition("_")[0]
    if view not in VIEWS:
        return Info()
    return read_info(files.images[0].parent / f"Info_{view}.cfg")


def find(root: Path, *, frames: str, labelled: bool) -> tuple[list[CaseFiles], Failures]:
    """Cases of `root`, sorted by id, and (patient, message) of the faulty patients.

    Args:
      root: a release, a folder of patients, one patient's folder, a folder of any other images, or
        one image.
      frames: a key of `FRAMES`: which images are cases, if `labelled`.
      labelled: every patient must have these in both views, each with a label. Otherwise whatever
        is there is a case, stills and films. Of the old release `testing` is then taken and
        `training` if labelled, where both are there.

    Images that are not named as in CAMUS are cases where no others are: of kind "", each a patient
    of its own, with `{name}_gt` as label. `._*` and other hidden files are passed over.

    Raises DataError if there is no case at all, or the root cannot be read.
    """
    if not root.exists():
        raise DataError(f"{root}: there is no such folder or file")
    images: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    with naming(root, "a folder of cases"):
        for path in _images(root, labelled):
            stem = _stem(path)
            group = images if _NAME.fullmatch(stem.removesuffix("_gt")) else others
            group.setdefault(stem, []).append(path)
    if images:
        good, bad = _camus(images, frames if labelled else None)
    else:
        good, bad = _plain(others, labelled)
    if not good and not bad:
        raise DataError(
            f"{root}: no case found; expected files such as patient0001/patient0001_2CH_ED.nii.gz "
            f"(or .mhd){' with patient0001_2CH_ED_gt.nii.gz' if labelled else ''}"
        )
    return sorted(good, key=lambda case: case.id), sorted(bad)


def subgroups(root: Path) -> dict[str, list[str]]:
    """Official lists of patients, {"training": [...], "validation": ..., "testing": ...}.

    Looked for in `database_split` in the root, beside it, and one folder down.

    Raises:
      DataError: they are not there, cannot be read, or name a patient twice.
    """
    places = [root / "database_split", root.parent / "database_split", root]
    places += sorted(root.glob("*/database_split"))
    for folder in places:
        paths = {name: folder / f"subgroup_{name}.txt" for name in SUBGROUPS}
        if any(path.is_file() for path in paths.values()):
            break
    else:
        raise DataError(
            f"{root}: the official split is not there; expected subgroup_training.txt, "
            f"subgroup_validation.txt and subgroup_testing.txt in {places[0]} or {places[1]}. "
            "Without them set split.kind to kfold or holdout"
        )
    lists: dict[str, list[str]] = {}
    seen: dict[str, Path] = {}
    twice = []
    for name, path in paths.items():
        try:
            lists[name] = read_bytes(path, limit=_TEXT_BYTES).decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        for patient in lists[name]:
            if patient in seen:
                twice.append(f"{patient} in {seen[patient].name} and {path.name}")
            seen[patient] = path
    if twice:
        raise DataError(
            f"{folder}: a patient may be in one list once; found {'; '.join(twice)}. "
            "Correct the lists, or set split.kind to kfold"
        )
    return lists


def _images(root: Path, labelled: bool) -> Iterator[Path]:
    """Files with an image's ending, in a fixed order."""
    if root.is_file():
        yield root
        return
    skip = None
    if (root / "training").is_dir() and (root / "testing").is_dir():
        skip = root / ("testing" if labelled else "training")
    folders = [(root, 0)]
    while folders:
        folder, depth = folders.pop(0)
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path == skip:
                continue
            if path.is_dir() and depth < _DEPTH:
                folders.append((path, depth + 1))
            elif path.name.endswith(SUFFIXES) and path.is_file():
                yield path


def _stem(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    return path.name.removesuffix(suffix)


def _camus(images: dict[str, list[Path]], frames: str | None) -> tuple[list[CaseFiles], Failures]:
    """Cases by name; with `frames`, complete patients only."""
    good: list[CaseFiles] = []
    bad: Failures = []
    patients: dict[str, dict[str, list[Path]]] = {}
    for stem, paths in images.items():
        patients.setdefault(stem.partition("_")[0], {})[stem] = paths
    for patient, files in patients.items():
        wrong = [
            f"{stem} is in several folders: {', '.join(str(p.parent) for p in paths)}"
            for stem, paths in files.items()
            if len({path.parent for path in paths}) > 1
        ]
        if frames:
            wrong += _missing(patient, files, FRAMES[frames])
        if wrong:
            bad.append((patient, "; ".join(wrong)))
            continue
        expected = FRAMES[frames] if frames else (*STILLS, *FILMS)
        for stem, paths in files.items():
            match = _NAME.fullmatch(stem)
            if match and match[3] in expected:
                good.append(_case(stem, patient, f"{match[2]}_{match[3]}", paths, files))
    return good, bad


def _missing(patient: str, files: dict[str, list[Path]], expected: tuple[str, ...]) -> list[str]:
    """Missing files of a labelled patient, in words."""
    wrong = []
    folder = next(iter(files.values()))[0].parent
    for view in VIEWS:
        there = [what for what in expected if f"{patient}_{view}_{what}" in files]
        if not there:
            wrong.append(f"{folder}: the {view} view is missing; found {', '.join(sorted(files))}")
            continue
        for what in expected:
            name = f"{patient}_{view}_{what}"
            if what not in there:
                wrong.append(f"{folder}: {name} is missing, though {', '.join(there)} is there")
            elif f"{name}_gt" not in files:
                wrong.append(f"{folder}: {name} has no label; expected {name}_gt")
    return wrong


def _plain(others: dict[str, list[Path]], labelled: bool) -> tuple[list[CaseFiles], Failures]:
    """Cases of any images, each a patient of its own."""
    good: list[CaseFiles] = []
    bad: Failures = []
    for stem, paths in others.items():
        if stem.endswith("_gt") and stem.removesuffix("_gt") in others:
            continue
        if len({path.parent for path in paths}) > 1:
            places = ", ".join(str(path.parent) for path in paths)
            bad.append((stem, f"is in several folders: {places}"))
        elif labelled and f"{stem}_gt" not in others:
            bad.append((stem, f"{paths[0]} has no label; expected {stem}_gt beside it"))
        else:
            good.append(_case(stem, stem, "", paths, others))
    return good, bad


def _case(
    stem: str, patient: str, kind: str, paths: list[Path], files: dict[str, list[Path]]
) -> CaseFiles:
    labels = files.get(f"{stem}_gt")
    return CaseFiles(stem, patient, (_best(paths),), _best(labels) if labels else None, kind)


def _best(paths: list[Path]) -> Path:
    """Preferred one of several formats of one image."""
    return min(paths, key=lambda path: [path.name.endswith(s) for s in SUFFIXES].index(True))
