"""File layouts of BraTS releases: folders of cases, or the decathlon's 4-D files.

The folders of cases may lie one level down, as HGG and LGG in 2017 to 2019: the cases of all of
them together are those of the root.

Hidden files, and anything that is not named as a case is, are passed over: a data root may hold
notes, spreadsheets or predictions beside the cases. Folders that hold NIfTI files and are no case
are said. Endings are the same in upper and lower case.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from crossdim_jax.challenges import patients
from crossdim_jax.challenges.nifti_folders import (
    broken_link,
    files_in,
    folders_in,
    listing,
    passed_over,
    preferred,
    stem_of,
    visible,
    warn_of_duplicates,
    warn_once,
)
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.storage import reading

# Our names, in the order that every layout below shares.
MODALITIES = ("flair", "t1", "t1ce", "t2")


@dataclasses.dataclass(frozen=True)
class Layout:
    """File names of one release.

    Attributes:
      modalities: its names of `MODALITIES`, in that order; empty where the user names them.
      separator: between case and modality.
      convention: the label convention that goes with it, None if it must be given.
    """

    modalities: tuple[str, ...]
    separator: str
    convention: str | None


LAYOUTS = {
    "2020": Layout(MODALITIES, "_", "2021"),
    "2021": Layout(MODALITIES, "_", "2021"),
    "2023": Layout(("t2f", "t1n", "t1c", "t2w"), "-", "2023"),
    "msd": Layout(("FLAIR", "T1w", "T1gd", "T2w"), "", "msd"),
    "plain": Layout((), "_", None),
}

_OFFICIAL = re.compile(r"brats", re.IGNORECASE)  # a folder so named is meant to be a case
_YEAR = {
    "2020": re.compile(r"brats20_", re.IGNORECASE),
    "2021": re.compile(r"brats(17|18|19|2021)_", re.IGNORECASE),
    "2023": re.compile(r"brats-[a-z]+-", re.IGNORECASE),
}
# Tasks of 2023 and later, as the cases are named, whose labels mean what a convention says.
TASKS = {
    "GLI": ("2023", "2024"),
    "SSA": ("2023",),
    "MEN": ("2023",),
    "MET": ("2023", "2024"),
    "GOAT": ("2023",),
}
_TASK = re.compile(r"brats-([a-z]+(?:-rt)?)-\d.*", re.IGNORECASE)
# In the convention of 2015, 1, 2 and 4 mean the same as in that of 2021; that of 2023 only has 3
# for 4, and a 4 that was not relabelled is refused when it is read.
_EARLY = re.compile(r"brats(20)?(17|18|19|20|21)_.*", re.IGNORECASE)
_DECATHLON = re.compile(r"brats_\d+", re.IGNORECASE)

Failures = list[tuple[str, str]]


def detect(root: Path) -> str:
    """Detects the layout of `root`, from names alone.

    Raises:
      DataError: nothing in it is named as a known layout names its cases.
      ConfigError: it holds cases of different layouts.
    """
    _check_root(root)
    if _is_msd(root):
        return "msd"
    named: list[tuple[int, str, str]] = []  # depth, layout, case
    for name in ("2021", "2023"):
        layout = LAYOUTS[name]
        for folder, case in _case_folders(root, layout.separator, layout.modalities):
            year = next((y for y, pattern in _YEAR.items() if pattern.match(case)), None)
            if year:
                named.append((len(folder.parts), year, case))
    top = min((depth for depth, _, _ in named), default=0)
    found: dict[str, str] = {}
    for depth, year, case in named:
        if depth == top:  # an old release kept in a folder beside the cases is none of them
            found.setdefault(year, case)
    if len(found) > 1 and set(found) != {"2020", "2021"}:
        raise ConfigError(
            f"{root}: holds cases of different layouts ({', '.join(found.values())}); "
            "separate them, or set layout to one of " + ", ".join(LAYOUTS)
        )
    if not found:
        raise DataError(
            f"{root}: no case is named as in BraTS 2017 to 2024 or the decathlon's Task01; found: "
            f"{listing(root)}.{_deeper(root)} For folders named otherwise set layout to 'plain', "
            "modalities and convention"
        )
    return min(found)


def find(
    root: Path, layout: str, modalities: Sequence[str], *, labelled: bool
) -> tuple[list[CaseFiles], Failures]:
    """Cases of `root`, sorted by id, and (id, message) of the faulty ones.

    Args:
      root: folder of cases, or one case's folder.
      layout: a key of `LAYOUTS`.
      modalities: as the files name them; ignored by "msd", whose files hold all four.
      labelled: a case without a label is faulty.

    Raises:
      DataError: there is no case at all, or the root cannot be read.

    Cases of one name in several folders (HGG and LGG, say) are faulty: which one is meant?
    """
    _check_root(root)
    if layout == "msd":
        good, bad = _find_msd(root, labelled)
        wanted = "imagesTr/BRATS_001.nii.gz"
    else:
        separator = LAYOUTS[layout].separator
        good, bad, twice = [], [], []
        folders: dict[str, list[Path]] = {}
        for folder, case in _case_folders(root, separator, modalities):
            folders.setdefault(case, []).append(folder)
        bad.extend(passed_over(root, {p for places in folders.values() for p in places}))
        for case, places in folders.items():
            if len(places) > 1:
                bad.append((case, f"is in {' and in '.join(map(str, places))}; rename all but one"))
                continue
            files = _case_files(places[0], case, LAYOUTS[layout], modalities, labelled, twice)
            bad.append((case, files)) if isinstance(files, str) else good.append(files)
        warn_of_duplicates(twice)
        wanted = f"CASE/CASE{separator}{modalities[0]}.nii.gz"
    if not good and not bad:
        raise DataError(
            f"{root}: holds no case of layout {layout!r}; expected files such as {wanted}, "
            f"found: {listing(root)}.{_deeper(root)}"
        )
    good = patients.assign(root, good)
    return sorted(good, key=lambda case: case.id), sorted(bad)


def check_tasks(
    cases: Iterable[str], layout: str, convention: str, root: Path, *, labelled: bool
) -> None:
    """Raises DataError for cases whose names say that their labels follow another convention.

    Without labels the network sees the same four modalities: that is only warned of. In layout
    "plain" the convention is what the user says, unless none here fits the task.

    Raises ConfigError, naming the task or release.
    """
    for case in cases:
        release, known = _release(case, layout)
        if release is None or convention in known or (known and layout == "plain"):
            continue
        fits = f"convention {' or '.join(map(repr, known))} fits" if known else "none here fits"
        message = (
            f"{root}: {case} is of {release}, whose labels are not those of "
            f"convention {convention!r} ({fits}); known tasks: {', '.join(TASKS)}"
        )
        if labelled:
            raise ConfigError(
                f"{message}. Use another root{' or convention' if known else ''}, or relabel the "
                f"cases and name them otherwise{_PLAIN if known else ''}"
            )
        warn_once(f"{message}. Predictions are written in convention {convention!r}")
        return


_PLAIN = "; in layout 'plain' the labels are what you say"


def _release(case: str, layout: str) -> tuple[str | None, tuple[str, ...]]:
    """Release in a case's name, None if none, and the conventions that fit its labels."""
    if found := _TASK.fullmatch(case):
        task = found[1].upper()
        return f"the BraTS task {task}", TASKS.get(task, ())
    if _EARLY.fullmatch(case):
        return "BraTS 2017 to 2021", ("2015", "2021", "2023")
    if layout == "msd" and _DECATHLON.fullmatch(case):
        return "the decathlon", ("msd",)
    return None, ()


def _check_root(root: Path) -> None:
    if not root.is_dir():
        what = "is a file" if root.is_file() else "there is no such folder"
        raise DataError(f"{root}: {what}; the data root must be a folder of cases")


def _deeper(root: Path) -> str:
    """Hint for a message if the cases lie further down than is looked for."""
    above = folders_in(root)
    below = [folder for parent in above for folder in folders_in(parent)]
    holds = [folder for folder in below if any(_OFFICIAL.match(p.name) for p in folders_in(folder))]
    found = [*filter(_is_msd, above), *filter(_is_msd, below), *holds]
    return f" The cases seem to be in {found[0]}: make that the root." if found else ""


def _cases_of(folder: Path, separator: str, modalities: Sequence[str]) -> set[str]:
    """Case names of the files in `folder` that end in a modality or `seg`."""
    stems = [stem_of(path) for path in files_in(folder)]
    endings = [(separator + name).lower() for name in (*modalities, "seg")]
    return {
        stem[: -len(ending)]
        for stem in stems
        if stem is not None
        for ending in endings
        if stem.lower().endswith(ending)
    }


def _case_folders(root: Path, separator: str, modalities: Sequence[str]) -> list[tuple[Path, str]]:
    """Folder and id of every case; a root that is itself a case counts as one.

    Looks one level further down if no folder in `root` holds files of a case but folders in these
    do.
    """
    own = _cases_of(root, separator, modalities)
    if root.name in own:
        return [(root, root.name)]

    def filled(folders: list[Path]) -> list[Path]:
        return [folder for folder in folders if _cases_of(folder, separator, modalities)]

    folders = folders_in(root)
    cases = filled(folders)
    if not cases and not own:
        inner = {group: folders_in(group) for group in folders}
        cases = [folder for group in folders for folder in filled(inner[group])]
        # A group without any case is not one: its name may yet be that of an (empty) case.
        groups = {folder.parent for folder in cases}
        folders = [f for group in folders for f in (inner[group] if group in groups else [group])]
    full = set(cases)
    below = [(f, f.name) for f in folders if f in full or _OFFICIAL.match(f.name)]
    if below or not own:
        return below
    if len(own) > 1:
        raise DataError(
            f"{root}: the files of {len(own)} cases ({', '.join(sorted(own)[:3])}, ...) lie "
            "together; give each case a folder of its name"
        )
    return [(root, own.pop())]


def _case_files(
    folder: Path,
    case: str,
    layout: Layout,
    modalities: Sequence[str],
    labelled: bool,
    twice: list[Path],
) -> CaseFiles | str:
    """Files of a case, or what is missing; files that are not read are added to `twice`."""
    separator = layout.separator
    by_stem: dict[str, list[Path]] = {}
    for path in files_in(folder):
        if (stem := stem_of(path)) is not None:
            by_stem.setdefault(stem.lower(), []).append(path)

    def file(ending: str) -> Path | None:
        return preferred(by_stem.get(f"{case}{separator}{ending}".lower(), ()), twice)

    images = {name: file(name) for name in modalities}
    label = file("seg")
    if label is None:
        known = {(case + separator + name).lower() for name in (*layout.modalities, *modalities)}
        label = _misnamed_label(folder, known)
    for path in (*images.values(), label):
        if path is not None and (why := broken_link(path)):
            return why
    missing = [f"modality {name!r}" for name, path in images.items() if path is None]
    endings = [name for name, path in images.items() if path is None]
    if labelled and label is None:
        missing, endings = [*missing, "label"], [*endings, "seg"]
    if missing:
        expected = ", ".join(f"{case}{separator}{ending}.nii.gz" for ending in endings)
        return (
            f"no {' and no '.join(missing)}: expected {expected} (or .nii) in {folder}, "
            f"found: {listing(folder)}"
        )
    return CaseFiles(case, patients.of_case(case), tuple(images.values()), label)


def _misnamed_label(folder: Path, images: set[str]) -> Path | None:
    """Label misnamed `_Segm`: the one file that is no image of the case; None if there is none.

    BraTS20_Training_355 was released with the label W39_1998.09.19_Segm.nii.
    """
    volumes = [path for path in files_in(folder) if stem_of(path) is not None]
    others = [path for path in volumes if stem_of(path).lower() not in images]
    return others[0] if len(others) == 1 and stem_of(others[0]).endswith("_Segm") else None


def _is_msd(root: Path) -> bool:
    if any((root / name).is_dir() for name in ("imagesTr", "imagesTs")):
        return True
    return any(re.fullmatch(r"BRATS_\d+", stem_of(path) or "") for path in visible(root))


def _find_msd(root: Path, labelled: bool) -> tuple[list[CaseFiles], Failures]:
    """Cases of the decathlon: imagesTr with labelsTr, or imagesTs or the root's own files."""
    _check_msd_json(root / "dataset.json")
    folders = ["imagesTr"] if labelled else ["imagesTs", "imagesTr", "."]
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(f"{root}: has no folder imagesTr; found: {listing(root)}")
    images, labels = _by_case(folder), _by_case(root / "labelsTr")
    good, bad, twice = [], [], []
    for case, paths in images.items():
        path, label = (
            preferred(paths, twice),
            preferred(labels.get(case, ()), twice),
        )
        broken = [why for p in (path, label) if p and (why := broken_link(p))]
        if broken:
            bad.append((case, broken[0]))
        elif labelled and label is None:
            expected = root / "labelsTr" / f"{case}.nii.gz"
            bad.append((case, f"no label: expected {expected} (or .nii) beside {path}"))
        else:
            good.append(CaseFiles(case, patients.of_case(case), (path,), label))
    warn_of_duplicates(twice)
    if labelled and (alone := sorted(set(labels) - set(images))):
        warn_once(
            f"{root / 'labelsTr'}: {len(alone)} labels have no image and are passed over, such as "
            f"that of {alone[0]}"
        )
    return good, bad


def _by_case(folder: Path) -> dict[str, list[Path]]:
    """NIfTI files of a folder by case; none if there is no such folder."""
    found: dict[str, list[Path]] = {}
    for path in files_in(folder) if folder.is_dir() else ():
        if (case := stem_of(path)) is not None:
            found.setdefault(case, []).append(path)
    return found


def _check_msd_json(path: Path) -> None:
    """Raises DataError if dataset.json names the channels in another order than expected."""
    if not path.is_file():
        return
    try:
        channels = json.loads(reading.read_bytes(path, limit=1 << 26))["modality"]
        found = [str(channels[str(i)]) for i in range(len(channels))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be understood ({error!r}); expected the decathlon's description "
            'with "modality": {"0": "FLAIR", ...}'
        ) from error
    expected = LAYOUTS["msd"].modalities
    if [name.lower() for name in found] != [name.lower() for name in expected]:
        raise DataError(f"{path}: modalities are {found}, expected {list(expected)} in this order")
