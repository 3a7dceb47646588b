"""Layouts of a data set: the files of its cases in two folders, or as its JSON lists them."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from crossdim_jax.challenges import patients
from crossdim_jax.challenges.dataset.description import FILE, FOLDERS, Description, Entry, is_case
from crossdim_jax.challenges.nifti_folders import broken_link, files_in, listing, visible, warn_once
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging import dicom, volume
from crossdim_jax.imaging.case import CaseFiles

Faults = list[tuple[str, str]]
Found = tuple[list[CaseFiles], Faults]

_NUMBERED = re.compile(r"(.+)_(\d{4})", re.DOTALL)
_NEW = ("imagesTs", "imagesTr", "images", "image")  # of what is to be predicted, in this order
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules by which cases are told from files.

    Attributes:
      channels: names of the channels; () where their number is not known yet.
      outside_root: True if the files that a JSON lists may lie outside the data root.
      patient: pattern whose first group is the patient in a case's name; "" for the rules of
        `patients.of_case`.
    """

    channels: tuple[str, ...] = ()
    outside_root: bool = False
    patient: str = ""

    @property
    def count(self) -> int | None:
        """Number of channels, if it is known."""
        return len(self.channels) or None


def training(description: Description, rules: Rules) -> Found:
    """The labelled cases of a data set, sorted by id, and what is wrong with the faulty ones.

    Raises DataError if there is no case at all, or a folder is missing.
    """
    if description.training is not None:
        found = _listed(description, description.training, rules, labelled=True)
        _say_unlisted(description, found[0])
    else:
        found = _in_folders(description, rules)
    if description.count not in (None, total := len(found[0]) + len(found[1])):
        warn_once(
            f"{description.path}: numTraining is {description.count}, but there are {total} cases; "
            "those that are there are used"
        )
    return _finished(description.root, found, rules)


def new(root: Path, description: Description, rules: Rules) -> Found:
    """The cases of a folder to predict, labelled or not; otherwise as `training`.

    Args:
      root: a folder of images, `CASE_0000.nii.gz` for each channel or `CASE.nii.gz` with all of
        them; or the slices of one DICOM series; or a data set, of which imagesTs or what its JSON
        lists for tests is taken.
      description: of the data set that the network was trained on; of `root` if it is one.
      rules: as for `training`.
    """
    if description.testing and description.root == root:
        return _finished(
            root, _listed(description, description.testing, rules, labelled=False), rules
        )
    if not root.is_dir():
        what = "is a file" if root.is_file() else "there is no such folder"
        raise DataError(f"{root}: {what}; a folder of images is expected")
    inner = next((root / name for name in _NEW if (root / name).is_dir()), root)
    if dicom.is_one_series(inner):
        return _finished(root, ([CaseFiles(inner.name, inner.name, (inner,), None)], []), rules)
    files = _by_stem(inner, "")
    numbered = {stem: match for stem in files if (match := _NUMBERED.fullmatch(stem))}
    cases: dict[str, dict[int | None, list[Path]]] = {}
    for stem, paths in files.items():
        # Names that merely end so: `scan_2020` beside `scan_2021` are no channels of one case.
        channel = numbered.get(stem) if _is_channel(stem, files, rules) else None
        name, number = (channel[1], int(channel[2])) if channel else (stem, None)
        cases.setdefault(name, {})[number] = paths
    return _finished(root, _together(inner, cases, None, "", rules), rules)


def _is_channel(stem: str, files: dict[str, list[Path]], rules: Rules) -> bool:
    """True if `CASE_0000` is among the files, and this is CASE with a channel's number."""
    match = _NUMBERED.fullmatch(stem)
    return match is not None and f"{match[1]}_0000" in files


# --------------------------------------------------------------------------- two folders


def _in_folders(description: Description, rules: Rules) -> Found:
    """imagesTr with labelsTr, or the like."""
    root = description.root
    pairs = FOLDERS if description.form == "folders" else FOLDERS[:1]
    pair = next((p for p in pairs if all((root / name).is_dir() for name in p)), None)
    if pair is None:
        raise DataError(
            f"{root}: has no folders {' and '.join(pairs[0])} beside its {FILE}; found: "
            f"{listing(root)}"
        )
    images, labels = (root / name for name in pair)
    of_images = _by_stem(images, description.ending)
    of_labels = _by_stem(labels, description.ending)
    cases: dict[str, dict[int | None, list[Path]]] = {}
    strict = description.form == "nnunet"
    plain = not strict and _names_are_equal(of_images, of_labels)
    for stem, paths in of_images.items():
        match = None if plain else _NUMBERED.fullmatch(stem)
        name, number = (match[1], int(match[2])) if match else (stem, None)
        cases.setdefault(name, {})[number] = paths
    good, bad = _together(images, cases, of_labels, description.ending, rules, strict=strict)
    ending = description.ending or ".nii.gz"
    for stem in sorted(set(of_labels) - set(cases)):
        expected = images / (f"{stem}{ending}" if plain else f"{stem}_0000{ending}")
        bad.append(
            (
                stem,
                f"{of_labels[stem][0]}: is a label without an image; add {expected}, or remove it",
            )
        )
    return good, bad


def _names_are_equal(images: dict[str, list[Path]], labels: dict[str, list[Path]]) -> bool:
    """True if images are named as labels are rather than with a channel's number at the end."""
    numbered = {m[1] for stem in images if (m := _NUMBERED.fullmatch(stem))}
    return len(set(images) & set(labels)) >= len(numbered & set(labels))


def _by_stem(folder: Path, ending: str) -> dict[str, list[Path]]:
    """The images of a folder by their names without the ending, folders of DICOM files too."""
    found: dict[str, list[Path]] = {}
    others = []
    for path in visible(folder):
        if path.is_dir():
            if dicom.is_folder(path):
                found.setdefault(path.name, []).append(path)
            continue
        suffix = volume.suffix_of(path)
        if not suffix or path.name == suffix:
            continue
        if ending and suffix.lower() != ending.lower():
            others.append(path)
            continue
        found.setdefault(path.name[: -len(suffix)], []).append(path)
    if others:
        warn_once(
            f"{folder}: {len(others)} images do not end in {ending} (file_ending) and are passed "
            f"over, such as {others[0].name}"
        )
    return found


def _together(
    folder: Path,
    cases: dict[str, dict[int | None, list[Path]]],
    labels: dict[str, list[Path]] | None,
    ending: str,
    rules: Rules,
    *,
    strict: bool = False,
) -> Found:
    """Cases of channels by number (None: a file without one), with their labels.

    strict: a file without a channel's number is faulty.
    """
    good, bad = [], []
    most = max((len(numbers) for numbers in cases.values()), default=1)
    count = rules.count or most
    for case, numbers in cases.items():
        every = [path for paths in numbers.values() for path in paths]
        label = [] if labels is None else labels.get(case, [])
        why = (
            _twice([*numbers.values(), label])
            or _number_fault(folder, case, numbers, count, ending, rules, strict, apart=most > 1)
            or next(filter(None, map(broken_link, [*every, *label])), None)
        )
        if not why and labels is not None and not label:
            why = f"{every[0]}: has no label; add {case}{ending or '.nii.gz'} to the labels"
        if not why and not is_case(case):
            why = f"{every[0]}: its name is none for a case; rename it"
        if why:
            bad.append((case, why))
            continue
        images = tuple(numbers[number][0] for number in sorted(numbers, key=lambda n: n or 0))
        good.append(CaseFiles(case, case, images, label[0] if label else None))
    return good, bad


def _twice(files: Sequence[Sequence[Path]]) -> str:
    both = next((paths for paths in files if len(paths) > 1), None)
    return f"{both[0]}: is there again as {both[1].name}; remove one of them" if both else ""


def _number_fault(
    folder: Path,
    case: str,
    numbers: dict[int | None, list[Path]],
    count: int,
    ending: str,
    rules: Rules,
    strict: bool,
    *,
    apart: bool,
) -> str:
    """Fault of the channels of a case; "" if nothing is.

    apart: some case has a file for each channel: then a file 0000 alone is not one of all.
    """
    first = next(iter(numbers.values()))[0]
    suffix = ending or volume.suffix_of(first)
    if None in numbers:
        if strict:
            return (
                f"{numbers[None][0]}: its name ends in no channel number; expected {case}_0000"
                f"{suffix}" + (f" to {case}_{count - 1:04d}{suffix}" if count > 1 else "")
            )
        if len(numbers) > 1:
            return (
                f"{numbers[None][0]}: lies beside files of single channels; keep one or the other"
            )
        return ""  # of all channels
    if set(numbers) == {0} and not apart:
        return ""  # the only one, or a file of all channels
    named = dict(enumerate(rules.channels))
    lacking = [n for n in range(count) if n not in numbers]
    if lacking:
        names = " and ".join(f"{n}" + (f" ({named[n]})" if n in named else "") for n in lacking)
        files = ", ".join(str(folder / f"{case}_{n:04d}{suffix}") for n in lacking)
        return f"channel {names} is missing: expected {files}"
    if extra := [n for n in numbers if n >= count]:
        return (
            f"{numbers[extra[0]][0]}: is channel {extra[0]}, but there are {count}, counted from 0"
        )
    return ""


# --------------------------------------------------------------------------- lists in a JSON


def _listed(
    description: Description, entries: Sequence[Entry], rules: Rules, *, labelled: bool
) -> Found:
    good, bad = [], []
    names = _names(entries)
    count = rules.count or max((len(entry.images) for entry in entries), default=1)
    twice = {name for name, n in collections.Counter(names).items() if n > 1}
    for name, entry in zip(names, entries, strict=True):
        found = _entry(description, entry, count, rules, labelled=labelled)
        if name in twice:
            found = f"{description.path}: lists it more than once; remove all entries but one"
        elif not is_case(name):
            found = (
                f"{description.path}: {entry.images[0]!r} is no name for a case; rename the file"
            )
        if isinstance(found, str):
            bad.append((name, found))
        else:
            images, label = found
            good.append(CaseFiles(name, name, images, label))
    return good, bad


def _entry(
    description: Description, entry: Entry, count: int, rules: Rules, *, labelled: bool
) -> tuple[tuple[Path, ...], Path | None] | str:
    """Paths of images and label, or what is wrong."""
    if len(entry.images) not in (1, count):
        return (
            f"{description.path}: lists {len(entry.images)} images for it, expected {count}, one "
            "for each channel, or one file of all"
        )
    if labelled and entry.label is None:
        return f"{description.path}: lists no label for it; add one, or remove the entry"
    paths = []
    for text in (*entry.images, *([entry.label] if entry.label else [])):
        path = _inside(description, text, rules)
        if isinstance(path, str):
            return path
        paths.append(path)
    images = tuple(paths[: len(entry.images)])
    return images, (paths[-1] if entry.label else None)


def _inside(description: Description, text: str, rules: Rules) -> Path | str:
    """The file that a JSON names, or what is wrong with it."""
    root, path = description.root, description.root / text
    if rules.outside_root:
        path = root / os.path.expandvars(text)
    elif not path.resolve().is_relative_to(root.resolve()) or _VARIABLE.search(text):
        return (
            f"{description.path}: names {text!r}, which lies outside {root}; copy the file there, "
            "or, if you trust this file, set config.challenge.outside_root=True"
        )
    if why := broken_link(path):
        return why
    if not path.exists():
        return f"{path}: there is no such file, but {description.path.name} lists it"
    return path


def _names(entries: Sequence[Entry]) -> list[str]:
    """Ids of listed cases: names of their files, or with the folders where these are not unique."""

    def stem(path: PurePosixPath, whole: bool, many: bool) -> str:
        name = "_".join(p for p in path.parts if p not in (".", "..", "/")) if whole else path.name
        name = name[: len(name) - len(volume.suffix_of(name))]
        match = _NUMBERED.fullmatch(name) if many else None
        return match[1] if match else name

    def names(whole: bool) -> list[str]:
        return [
            entry.case or stem(PurePosixPath(entry.images[0]), whole, len(entry.images) > 1)
            for entry in entries
        ]

    short = names(False)
    return short if len(set(short)) == len(short) else names(True)


def _say_unlisted(description: Description, cases: Sequence[CaseFiles]) -> None:
    """Warns of files beside those that the JSON lists: they may be missing from the list."""
    used = {path for case in cases for path in (*case.images, case.label)}
    folders = {path.parent for path in used if path is not None}
    unlisted = [
        path
        for folder in sorted(folders)
        for path in files_in(folder)
        if volume.suffix_of(path) and path not in used and not path.name.startswith("_")
    ]
    if unlisted:
        warn_once(
            f"{description.path}: does not list {len(unlisted)} files that lie beside those of its "
            f"cases; they are passed over, such as {unlisted[0]}"
        )


# --------------------------------------------------------------------------- patients


def _finished(root: Path, found: Found, rules: Rules) -> Found:
    """Cases with their patients, sorted. Raises DataError if there is no case."""
    good, bad = found
    if not good and not bad:
        raise DataError(
            f"{root}: holds no case; expected images such as CASE_0000.nii.gz (endings: "
            f"{', '.join(volume.SUFFIXES)}), found: {listing(root)}"
        )
    of = _patient(rules.patient)
    cases = [dataclasses.replace(case, patient=of(case.id)) for case in good]
    cases = patients.assign(root, cases)
    return sorted(cases, key=lambda case: case.id), sorted(bad)


def _patient(pattern: str) -> Callable[[str], str]:
    if not pattern:
        return patients.of_case
    compiled = re.compile(pattern)

    def of(case: str) -> str:
        match = compiled.match(case)
        if match is None or not match[1]:
            raise ConfigError(
                f"config.challenge.patient={pattern!r} finds no patient in {case!r}; expected a "
                "pattern whose first group is the patient's name in every case's"
            )
        return match[1]

    return of
