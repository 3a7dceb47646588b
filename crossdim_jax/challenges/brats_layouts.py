"""Where BraTS releases keep their files: folders of cases, or the decathlon's 4-D files.

The folders of cases may lie one level down, as HGG and LGG in 2017 to 2019: the cases of all of
them together are those of the root.

Hidden files, and anything that is not named as a case is, are passed over: a data root may hold
notes, spreadsheets or predictions beside the cases.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from crossdim_jax.challenges import CaseFiles
from crossdim_jax.errors import ConfigError, DataError

# Our names, in the order that every layout below shares.
MODALITIES = ("flair", "t1", "t1ce", "t2")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one release names its files.

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

_SUFFIXES = (".nii.gz", ".nii")  # in order of preference where both are there
_OFFICIAL = re.compile(r"brats", re.IGNORECASE)  # a folder so named is meant to be a case
_YEAR = {
    "2020": re.compile(r"brats20_", re.IGNORECASE),
    "2021": re.compile(r"brats(17|18|19|2021)_", re.IGNORECASE),
    "2023": re.compile(r"brats-gli-", re.IGNORECASE),
}
_TIMEPOINT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+")  # BraTS-GLI-00001-000: patient, visit

Failures = list[tuple[str, str]]


def detect(root: Path) -> str:
    """The layout of `root`, from names alone.

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
            f"{_listing(root)}.{_deeper(root)} For folders named otherwise set layout to 'plain', "
            "modalities and convention"
        )
    return min(found)


def find(
    root: Path, layout: str, modalities: Sequence[str], *, labelled: bool
) -> tuple[list[CaseFiles], Failures]:
    """All cases of `root`, sorted by id, and what is wrong with the faulty ones.

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
        good, bad = [], []
        folders: dict[str, list[Path]] = {}
        for folder, case in _case_folders(root, separator, modalities):
            folders.setdefault(case, []).append(folder)
        for case, places in folders.items():
            if len(places) > 1:
                bad.append((case, f"is in {' and in '.join(map(str, places))}; rename all but one"))
                continue
            files = _case_files(places[0], case, LAYOUTS[layout], modalities, labelled)
            bad.append((case, files)) if isinstance(files, str) else good.append(files)
        wanted = f"CASE/CASE{separator}{modalities[0]}.nii.gz"
    if not good and not bad:
        raise DataError(
            f"{root}: holds no case of layout {layout!r}; expected files such as {wanted}, "
            f"found: {_listing(root)}.{_deeper(root)}"
        )
    return sorted(good, key=lambda case: case.id), sorted(bad)


def _check_root(root: Path) -> None:
    if not root.is_dir():
        what = "is a file" if root.is_file() else "there is no such folder"
        raise DataError(f"{root}: {what}; the data root must be a folder of cases")


def _visible(folder: Path) -> list[Path]:
    """Entries that are not hidden (.DS_Store, ._x), sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error})") from error


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _stem(path: Path) -> str | None:
    """The name without .nii or .nii.gz; None for other files."""
    return next((path.name.removesuffix(s) for s in _SUFFIXES if path.name.endswith(s)), None)


def _listing(folder: Path, most: int = 12) -> str:
    names = [path.name + "/" * path.is_dir() for path in _visible(folder)]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def _deeper(root: Path) -> str:
    """A hint when the cases lie further down than we look."""
    above = _folders(root)
    below = [folder for parent in above for folder in _folders(parent)]
    holds = [folder for folder in below if any(_OFFICIAL.match(p.name) for p in _folders(folder))]
    found = [*filter(_is_msd, above), *filter(_is_msd, below), *holds]
    return f" The cases seem to be in {found[0]}: make that the root." if found else ""


def _cases_of(folder: Path, separator: str, modalities: Sequence[str]) -> set[str]:
    """The case names of the files in `folder` that end in a modality or `seg`."""
    stems = [_stem(path) for path in _visible(folder) if path.is_file()]
    endings = [separator + name for name in (*modalities, "seg")]
    return {
        stem.removesuffix(ending)
        for stem in stems
        if stem is not None
        for ending in endings
        if stem.endswith(ending)
    }


def _case_folders(root: Path, separator: str, modalities: Sequence[str]) -> list[tuple[Path, str]]:
    """(folder, case id) of every case; a root that is itself a case counts as one.

    Looks one level further down if no folder in `root` holds files of a case but folders in these
    do.
    """
    own = _cases_of(root, separator, modalities)
    if root.name in own:
        return [(root, root.name)]

    def filled(folders: list[Path]) -> list[Path]:
        return [folder for folder in folders if _cases_of(folder, separator, modalities)]

    folders = _folders(root)
    cases = filled(folders)
    if not cases and not own:
        inner = {group: _folders(group) for group in folders}
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
    folder: Path, case: str, layout: Layout, modalities: Sequence[str], labelled: bool
) -> CaseFiles | str:
    """The case's files, or what is missing."""
    separator = layout.separator

    def file(ending: str) -> Path | None:
        paths = [folder / f"{case}{separator}{ending}{suffix}" for suffix in _SUFFIXES]
        return next((path for path in paths if path.is_file()), None)

    images = {name: file(name) for name in modalities}
    label = file("seg")
    if label is None:
        known = {case + separator + name for name in (*layout.modalities, *modalities)}
        label = _misnamed_label(folder, known)
    missing = [f"modality {name!r}" for name, path in images.items() if path is None]
    endings = [name for name, path in images.items() if path is None]
    if labelled and label is None:
        missing, endings = [*missing, "label"], [*endings, "seg"]
    if missing:
        expected = ", ".join(f"{case}{separator}{ending}.nii.gz" for ending in endings)
        return (
            f"no {' and no '.join(missing)}: expected {expected} (or .nii) in {folder}, "
            f"found: {_listing(folder)}"
        )
    visit = _TIMEPOINT.fullmatch(case)
    return CaseFiles(case, visit[1] if visit else case, tuple(images.values()), label)


def _misnamed_label(folder: Path, images: set[str]) -> Path | None:
    """The one file that is no image of the case, if its name ends in `_Segm`; else None.

    BraTS20_Training_355 was released with the label W39_1998.09.19_Segm.nii.
    """
    volumes = [path for path in _visible(folder) if path.is_file() and _stem(path) is not None]
    others = [path for path in volumes if _stem(path) not in images]
    return others[0] if len(others) == 1 and _stem(others[0]).endswith("_Segm") else None


def _is_msd(root: Path) -> bool:
    if any((root / name).is_dir() for name in ("imagesTr", "imagesTs")):
        return True
    return any(re.fullmatch(r"BRATS_\d+", _stem(path) or "") for path in _visible(root))


def _find_msd(root: Path, labelled: bool) -> tuple[list[CaseFiles], Failures]:
    """imagesTr with labelsTr; without labels asked for, imagesTs or else the root's own files."""
    _check_msd_json(root / "dataset.json")
    folders = ["imagesTr"] if labelled else ["imagesTs", "imagesTr", "."]
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(f"{root}: has no folder imagesTr; found: {_listing(root)}")
    good, bad = {}, []
    for path in _visible(folder):
        case = _stem(path)
        if case is None or case in good or not path.is_file():
            continue
        labels = [root / "labelsTr" / (case + suffix) for suffix in _SUFFIXES]
        label = next((label for label in labels if label.is_file()), None)
        if labelled and label is None:
            bad.append((case, f"no label: expected {labels[0]} (or .nii) beside {path}"))
        else:
            good[case] = CaseFiles(case, case, (path,), label)
    return list(good.values()), bad


def _check_msd_json(path: Path) -> None:
    """The channels are in the order we take them to be, if dataset.json is there to say so."""
    if not path.is_file():
        return
    try:
        channels = json.loads(path.read_text(encoding="utf-8"))["modality"]
        found = [str(channels[str(i)]) for i in range(len(channels))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be understood ({error!r}); expected the decathlon's description "
            'with "modality": {"0": "FLAIR", ...}'
        ) from error
    expected = LAYOUTS["msd"].modalities
    if [name.lower() for name in found] != [name.lower() for name in expected]:
        raise DataError(f"{path}: modalities are {found}, expected {list(expected)} in this order")
