"""Description of a data set: channels, labels, colours, and the files that it lists.

Four forms become one `Description`: nnU-Net's raw folders (dataset.json with `channel_names`),
tasks of the Medical Segmentation Decathlon (`modality`, `training`), datalists of MONAI
(`training`, often with nothing else), and two plain folders of images and labels without a JSON.

A dataset.json is of unknown origin: it is read through the gate for records, every field is
checked, and the files that it names stay inside the data root.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdim_jax.challenges.dataset import colours as colours_lib
from crossdim_jax.challenges.dataset.labels import Faults, Labels, parse
from crossdim_jax.challenges.nifti_folders import listing, warn_once
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.imaging import normalise, volume
from crossdim_jax.storage import records

FILE = "dataset.json"
# Pairs of folders, of images and of labels, where no JSON says which.
FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"), ("image", "label"))
_REMEDY = "correct it by hand, or make the data set's folder anew"
_LIMIT = 64 << 20  # bytes
_MOST_CHANNELS = 1000
_CASE = re.compile(r"[^/\\\0]{1,200}")


@dataclasses.dataclass(frozen=True)
class Channel:
    """An image channel.

    Attributes:
      name: as the data set calls it.
      normalisation: a key of `normalise.SCHEMES`.
    """

    name: str
    normalisation: str

    @classmethod
    def of(cls, name: str) -> "Channel":
        """The channel of that name, normalised as the name says."""
        return cls(name, normalise.scheme_of(name))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A case that a JSON lists.

    Attributes:
      case: its id; "" where it follows from the files' names.
      images: as written: one file for each channel, or one for all.
      label: as written; None if it has none.
      fold: in which it validates; None if in none.
    """

    case: str
    images: tuple[str, ...]
    label: str | None
    fold: int | None = None


@dataclasses.dataclass(frozen=True)
class Description:
    """Description that a data set gives of itself.

    Attributes:
      path: of the JSON, or of the root where there is none.
      form: "nnunet", "decathlon", "monai" or "folders".
      channels: of every image, in order; empty where only the files tell.
      labels: None where only the label files tell.
      ending: of all files, such as ".nii.gz"; "" for any that is known.
      colours: {label: "#rrggbb"}, as far as given.
      training, testing: the cases that are listed; None if the folders say which there are.
      count: of labelled cases, as promised; None if not.
      modality: of all channels, where one word says it (MONAI); "" if none does.
      label_ending: `ending`, or else that of the labels; "" where only the files tell.
    """

    path: Path
    form: str
    channels: tuple[Channel, ...]
    labels: Labels | None
    ending: str = ""
    colours: Mapping[str, str] = dataclasses.field(default_factory=dict)
    training: tuple[Entry, ...] | None = None
    testing: tuple[Entry, ...] | None = None
    count: int | None = None
    modality: str = ""
    label_ending: str = ""

    @property
    def root(self) -> Path:
        """The folder of the data set."""
        return self.path if self.form == "folders" else self.path.parent

    def record(self) -> dict[str, Any]:
        """A dataset.json in nnU-Net's form that says the same of channels and labels."""
        return {
            "channel_names": {str(i): channel.name for i, channel in enumerate(self.channels)},
            **self.labels.record(),
            "file_ending": self.label_ending or ".nii.gz",
            **({"colours": dict(self.colours)} if self.colours else {}),
        }


def read(root: Path, file: str = FILE) -> Description:
    """The description of the data set in a folder.

    Args:
      root: of the data.
      file: name of the JSON in it. Without it, the folder's only JSON that is a datalist counts;
        else the folder must hold images and labels in two folders, see `FOLDERS`.

    Raises:
      DataError: there is no such folder, or nothing in it says what the data are.
      ManyErrors: the JSON has faults; all are listed.
    """
    if not root.is_dir():
        what = "is a file" if root.is_file() else "there is no such folder"
        raise DataError(f"{root}: {what}; the data root must be a folder with a {FILE}")
    path = root / file
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"file is {file!r}; expected the name of a file in {root}")
    if path.exists() or file != FILE:
        return of_record(read_json(path), path)
    if any(all((root / name).is_dir() for name in pair) for pair in FOLDERS):
        return Description(root, "folders", (), None)
    others = [path for path in sorted(root.glob("*.json")) if not path.name.startswith(".")]
    if len(others) == 1 and others[0].name != "patients.json":
        record = read_json(others[0])
        if isinstance(record.get("training"), list):
            return of_record(record, others[0])
    pairs = " or ".join(f"{images}/ and {labels}/" for images, labels in FOLDERS[:2])
    raise DataError(
        f"{root}: holds no {FILE}, and no two folders {pairs} without one; found: {listing(root)}. "
        f"Give the folder with the {FILE} as the root{_other_name(others)}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises DataError, naming it, if it holds none."""
    return records.read_record(path, remedy=_REMEDY, limit=_LIMIT)


def _other_name(others: Sequence[Path]) -> str:
    if not others:
        return ""
    return f", or name the JSON: --config.challenge.file={others[0].name}"


def of_record(record: Mapping[str, Any], path: Path) -> Description:
    """The description that a JSON object is; `path` is where it was read.

    Raises ManyErrors with everything that is wrong in it.
    """
    faults: Faults = []
    form = _form(record)
    datalist = form == "monai"
    channels = _channels(record, faults, required=not datalist)
    labels = parse(record, faults) if "labels" in record or not datalist else None
    training, testing = _listed(record, form, faults)
    ending = _ending(record, faults, required=form == "nnunet" and training is None)
    colours = colours_lib.parse(record, labels, faults)
    count = record.get("numTraining")
    if count is not None and not records.is_count(count):
        faults.append(("numTraining", f"is {count!r}, expected a whole number"))
    if faults:
        raise ManyErrors(f"{path}: does not describe a data set; {_REMEDY}", faults)
    if labels is not None and not labels.consecutive:
        values = ", ".join(map(str, labels.allowed[:12])) + ", ..." * (len(labels.allowed) > 12)
        warn_once(
            f"{path}: label values are not consecutive ({values}): the network gets numbers "
            "without gaps, and predictions are written with the values as they were"
        )
    modality = record.get("modality")
    return Description(
        path,
        form,
        channels,
        labels,
        ending,
        colours,
        training,
        testing,
        count,
        modality if isinstance(modality, str) else "",
        ending or volume.suffix_of(next((e.label for e in training or () if e.label), "")),
    )


def _form(record: Mapping[str, Any]) -> str:
    if "channel_names" in record or "dataset" in record or "file_ending" in record:
        return "nnunet"
    if isinstance(record.get("training"), list):
        return "decathlon" if isinstance(record.get("modality"), dict) else "monai"
    return "nnunet" if "labels" in record else "decathlon"


def _channels(record: Mapping[str, Any], faults: Faults, *, required: bool) -> tuple[Channel, ...]:
    """Channels in the order of their numbers; () where none are named and none need be."""
    field = "channel_names" if "channel_names" in record else "modality"
    named = record.get(field)
    if not required and not isinstance(named, dict):
        return ()
    if not isinstance(named, dict) or not named or len(named) > _MOST_CHANNELS:
        faults.append(
            (
                "channel_names",
                'expected an object that names each channel by its number, such as {"0": "CT"} or '
                '{"0": "T1", "1": "FLAIR"}',
            )
        )
        return ()
    numbers = [str(i) for i in range(len(named))]
    if set(named) != set(numbers):
        faults.append((field, f"has the numbers {', '.join(named)}, expected {', '.join(numbers)}"))
        return ()
    names = [named[number] for number in numbers]
    if not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        faults.append((field, f"names channels {names}, expected a text for each"))
        return ()
    return tuple(Channel.of(name) for name in names)


def _ending(record: Mapping[str, Any], faults: Faults, *, required: bool) -> str:
    ending = record.get("file_ending")
    if ending is None and not required:
        return ""
    known = ", ".join(volume.SUFFIXES)
    if ending is None:
        faults.append(("file_ending", f"is missing; expected one of {known}"))
    elif not isinstance(ending, str) or volume.suffix_of(f"x{ending}") != ending:
        faults.append(("file_ending", f"is {ending!r}, expected one of {known}"))
    return ending if isinstance(ending, str) else ""


# --------------------------------------------------------------------------- lists of files


def _listed(
    record: Mapping[str, Any], form: str, faults: Faults
) -> tuple[tuple[Entry, ...] | None, tuple[Entry, ...] | None]:
    """The cases that a JSON lists, with labels and without; None where it lists none."""
    if form == "nnunet":
        listed = record.get("dataset")
        return (None if listed is None else _by_case(listed, faults)), None
    training = record.get("training")
    if training is None and form == "decathlon":
        return None, None
    testing = record.get("testing", record.get("test"))
    return (
        _entries("training", training, faults, labelled=True),
        None if testing is None else _entries("test", testing, faults, labelled=False),
    )


def _by_case(listed: Any, faults: Faults) -> tuple[Entry, ...]:
    """nnU-Net's key "dataset"."""
    if not isinstance(listed, dict):
        faults.append(("dataset", 'expected {"case": {"images": [...], "label": ...}, ...}'))
        return ()
    result = []
    for case, entry in listed.items():
        field = f"dataset.{case[:80]}"
        if not is_case(case):
            faults.append((field, "is no name for a case: it would be no file's name"))
            continue
        entry = entry if isinstance(entry, dict) else {}
        result.append(_entry(field, case, entry.get("images"), entry.get("label"), None, faults))
    return tuple(entry for entry in result if entry is not None)


def is_case(name: str) -> bool:
    """True if a name can be that of a case, and so of the file of its prediction."""
    return bool(_CASE.fullmatch(name)) and name.isprintable() and not name.startswith(".")


def _entries(field: str, listed: Any, faults: Faults, *, labelled: bool) -> tuple[Entry, ...]:
    """The decathlon's and MONAI's lists; test images may be plain texts."""
    if not isinstance(listed, list):
        faults.append((field, 'expected a list of {"image": ..., "label": ...}'))
        return ()
    result = []
    for number, entry in enumerate(listed):
        if isinstance(entry, str | list):
            entry = {"image": entry}
        name = f"{field}[{number}]"
        if not isinstance(entry, dict):
            faults.append((name, 'expected {"image": ..., "label": ...}'))
            continue
        label = entry.get("label") if labelled else None
        result.append(_entry(name, "", entry.get("image"), label, entry.get("fold"), faults))
    return tuple(entry for entry in result if entry is not None)


def _entry(
    field: str, case: str, images: Any, label: Any, fold: Any, faults: Faults
) -> Entry | None:
    images = [images] if isinstance(images, str) else images
    before = len(faults)
    if not isinstance(images, list) or not images or not all(map(_is_path, images)):
        faults.append((field, "expected the path of an image, or one for each channel"))
    if label is not None and not _is_path(label):
        faults.append((field, "expected the path of a label"))
    if fold is not None and not records.is_count(fold):
        faults.append((field, f"has the fold {fold!r}, expected a whole number"))
    return Entry(case, tuple(images), label, fold) if len(faults) == before else None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value and len(value) < 4096
