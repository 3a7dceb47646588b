"""File layout of CHAOS, and the mask of each slice.

    Train_Sets/CT/<id>/DICOM_anon/*.dcm                         Ground/*.png
    Train_Sets/MR/<id>/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm   T1DUAL/Ground/*.png
    Train_Sets/MR/<id>/T2SPIR/DICOM_anon/*.dcm                  T2SPIR/Ground/*.png
    Test_Sets/...                                               the same without Ground

Any folder on the way down will do as the root. Outside this layout a series folder, a NIfTI file
or a folder of them can be predicted.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.challenges.chaos import mask_files
from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom
from crossdim_jax.imaging.case import CaseFiles

logger = logging.getLogger(__name__)

# kind -> the folders below Train_Sets: what sort of image, and what is annotated in it.
KINDS = {"CT": "CT", "T1DUAL": "MR", "T2SPIR": "MR"}
PHASES = ("InPhase", "OutPhase")
NIFTI = (".nii.gz", ".nii")
DICOM, GROUND = "DICOM_anon", "Ground"

Failures = list[tuple[str, str]]


def find(root: Path, *, labelled: bool, kind: str = "auto") -> tuple[list[CaseFiles], Failures]:
    """Cases of `root`, sorted by id, and (id, message) of the faulty ones.

    Args:
      root: see above. With both sets in it, labelled cases are those of Train_Sets and others those
        of Test_Sets.
      labelled: a case without masks is faulty.
      kind: what a series or volume outside the layout is, a key of `KINDS`; "auto": told from the
        DICOM headers, and unknown ("") for NIfTI.

    Raises:
      DataError: there is no case at all, or the root cannot be read.
    """
    if not root.exists():
        raise DataError(f"{root}: there is no such folder or file")
    root = root.resolve()
    series = _series_folders(root)
    sets = {"Train_Sets", "Test_Sets"} & {part for folder in series for part in folder.parts}
    if len(sets) == 2:
        chosen = "Train_Sets" if labelled else "Test_Sets"
        series = [folder for folder in series if chosen in folder.parts]
    if not series:
        if labelled:
            raise DataError(
                f"{root}: holds no case of CHAOS; expected folders such as Train_Sets/CT/1/"
                f"{DICOM} and Train_Sets/CT/1/{GROUND}, found: {_listing(root)}"
            )
        return _loose(root, kind), []
    good: dict[str, CaseFiles] = {}
    bad: Failures = []
    for folder in series:
        case, patient, found_kind = _name(folder)
        try:
            files = _case(folder, case, patient, found_kind, labelled)
            if case in good:
                raise DataError(f"{folder}: is a second {case}, beside {good[case].images[0]}")
            good[case] = files
        except DataError as error:
            bad.append((case, str(error)))
    return [good[case] for case in sorted(good)], sorted(bad)


def phase(case_id: str) -> str:
    """Phase of a T1DUAL case, "InPhase" or "OutPhase"; "" for any other."""
    return next((name for name in PHASES if case_id.endswith(f"_{name}")), "")


def pair(images: Sequence[Path], ground: Path) -> tuple[Path, ...]:
    """Mask of each slice.

    Both are taken in the natural order of their names, never by position: in CT z falls while the
    numbers rise. Where the two phases of T1DUAL differ in number, the masks belong to the phase
    that has as many slices; those of the other get the mask of the slice at the same place.

    Raises DataError if the numbers do not fit.
    """
    masks = mask_files.files_of(ground)
    if len(masks) == len(images):
        return masks
    partner = _partner(images, masks)
    if partner is not None:
        found = _same_place(images, partner)
        if None not in found:
            return tuple(masks[index] for index in found)
    raise DataError(
        f"{ground}: holds {len(masks)} masks, but {images[0].parent} has {len(images)} slices; "
        "each slice needs one mask. Copy both folders again"
    )


def _series_folders(root: Path) -> list[Path]:
    """Folders below `root`, or itself, that hold a series of the layout."""
    if root.is_file():
        return []
    if DICOM in root.parts:
        starts = [root]
    else:
        starts = [Path(folder) / DICOM for folder, names in _folders(root) if DICOM in names]
    found = []
    for start in starts:
        # A link to nothing is a phase that cannot be listed, and no phase less.
        phases = [p for p in (start / name for name in PHASES) if p.is_dir() or p.is_symlink()]
        found += phases or [start]
    return [folder for folder in found if _name(folder) is not None]


def _folders(root: Path) -> list[tuple[str, set[str]]]:
    """Folders below `root` and itself, with the names in it; links are followed once."""
    found, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=True):
        place = os.stat(folder)
        if (key := (place.st_dev, place.st_ino)) in seen:
            below.clear()  # a link back to a folder above, or a second way to this one
            logger.warning("%s: is a second way to a folder that was read; passed over", folder)
            continue
        seen.add(key)
        for name in files:
            if not os.path.exists(path := os.path.join(folder, name)):
                logger.warning("%s: is a link to nothing", path)
        found.append((folder, {*below, *files}))
        below[:] = sorted(n for n in below if not n.startswith(".") and n != DICOM)
    return found


def _name(folder: Path) -> tuple[str, str, str] | None:
    """Case id, patient and kind of a series folder of the layout; None if it is elsewhere."""
    parts = list(folder.parts)
    end = f"_{parts.pop()}" if parts[-1] in PHASES else ""
    if parts[-1] != DICOM or len(parts) < 3:
        return None
    *_, modality, number = parts[:-1]
    if modality == "CT" and not end:
        return f"CT_{number}", f"CT_{number}", "CT"
    *_, modality, number, kind = parts[:-1]
    if modality == "MR" and KINDS.get(kind) == "MR":
        return f"MR_{number}_{kind}{end}", f"MR_{number}", kind
    return None


def _case(folder: Path, case: str, patient: str, kind: str, labelled: bool) -> CaseFiles:
    images = dicom.files_of(folder)
    above = folder.parent if phase(case) else folder
    ground = above.parent / GROUND
    if not ground.is_dir():
        if labelled:
            raise DataError(
                f"{ground}: there is no such folder; expected a PNG mask for each slice"
            )
        return CaseFiles(case, patient, images, None, kind)
    masks = mask_files.files_of(ground)
    partner = _partner(images, masks) if len(masks) != len(images) else None
    if partner is not None:  # a slice of one phase alone has no mask
        found = _same_place(images, partner)
        images = tuple(p for p, index in zip(images, found, strict=True) if index is not None)
    if labelled:
        pair(images, ground)
    return CaseFiles(case, patient, images, ground, kind)


def _partner(images: Sequence[Path], masks: Sequence[Path]) -> tuple[Path, ...] | None:
    """Slices of the other phase, if there are as many as masks."""
    here = images[0].parent
    others = [here.parent / name for name in PHASES if name != here.name]
    if here.name not in PHASES or not others[0].is_dir():
        return None
    slices = dicom.files_of(others[0])
    return slices if len(slices) == len(masks) else None


def _same_place(images: Sequence[Path], partner: Sequence[Path]) -> list[int | None]:
    """Index of the slice of the other phase at the same place, for each slice; None: none is."""

    mine, theirs = (
        np.array([one.position for one in dicom.read_slices(paths)]) for paths in (images, partner)
    )
    apart = np.linalg.norm(mine[:, None] - theirs[None], axis=-1)
    # Half the distance of neighbours: nearer than any other slice can be.
    limit = 0.5 * float(np.linalg.norm(theirs[1] - theirs[0])) if len(theirs) > 1 else 1.0
    nearest = apart.argmin(axis=1)
    return [int(i) if apart[n, i] < limit else None for n, i in enumerate(nearest)]


def _loose(root: Path, kind: str) -> list[CaseFiles]:
    """Cases outside the layout: a NIfTI file, a folder of them, or one series."""
    if root.is_file() and is_nifti(root):
        return [_volume(root, kind)]
    if not root.is_dir():
        raise DataError(
            f"{root}: is neither a NIfTI file (.nii, .nii.gz) nor a folder; for DICOM give the "
            "folder of the series"
        )
    visible = [p for p in root.iterdir() if p.name[0] != "." and not p.is_dir()]
    cases = [_volume(path, kind) for path in sorted(visible) if is_nifti(path)]
    if cases:
        for case, number in Counter(case.id for case in cases).items():
            if number > 1:
                paths = ", ".join(str(c.images[0]) for c in cases if c.id == case)
                raise DataError(
                    f"{root}: {number} files would be the case {case!r}: {paths}; one result "
                    "would overwrite the other. Rename or remove one"
                )
        return cases
    if not visible:
        raise DataError(
            f"{root}: holds no case of CHAOS, no NIfTI file and no DICOM series; found: "
            f"{_listing(root)}"
        )
    images = dicom.files_of(root)
    name = root.name if root.name not in (DICOM, *PHASES) else root.parent.name
    return [CaseFiles(name, name, images, None, _kind(images[0]) if kind == "auto" else kind)]


def is_nifti(path: Path) -> bool:
    """True if a file's name is that of a NIfTI volume, in small or capital letters."""
    return path.name.lower().endswith(NIFTI)


def _volume(path: Path, kind: str) -> CaseFiles:
    suffix = next(suffix for suffix in NIFTI if path.name.lower().endswith(suffix))
    name = path.name[: -len(suffix)]
    return CaseFiles(name, name, (path,), None, "" if kind == "auto" else kind)


def _kind(path: Path) -> str:
    """Kind of a series from its headers; "" if they do not say."""
    try:
        [header] = dicom.read_slices([path])
    except DataError:  # reading the case will say what is wrong with it
        return ""
    if header.modality == "CT":
        return "CT"
    found = [kind for kind, modality in KINDS.items() if modality == "MR" and kind in header.words]
    return found[0] if header.modality == "MR" and len(found) == 1 else ""


def _listing(folder: Path, most: int = 12) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
