"""Folders of NIfTI files: their content, and which of several files of one name is read.

Endings are the same in upper and lower case.
"""

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from crossdim_jax.storage.reading import naming

logger = logging.getLogger(__name__)


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning once: a run looks for its cases several times."""
    logger.warning("%s", message)


SUFFIXES = (".nii.gz", ".nii")  # in order of preference where both are there


def visible(folder: Path) -> list[Path]:
    """Entries that are not hidden (.DS_Store, ._x), sorted."""
    with naming(folder, "a folder"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def folders_in(folder: Path) -> list[Path]:
    """Folders that are not hidden, sorted."""
    return [path for path in visible(folder) if path.is_dir()]


def stem_of(path: Path) -> str | None:
    """File name without .nii or .nii.gz, in whatever case; None for other files."""
    name = path.name.lower()
    return next((path.name[: -len(s)] for s in SUFFIXES if name.endswith(s)), None)


def files_in(folder: Path) -> list[Path]:
    """Entries that are no folder, broken links among them: these must be reported."""
    return [path for path in visible(folder) if not path.is_dir()]


def preferred(paths: Iterable[Path], twice: list[Path]) -> Path | None:
    """File that is read of several of one stem; the others are added to `twice`."""

    def rank(path: Path) -> tuple:
        suffix = path.name[len(stem_of(path)) :]
        return SUFFIXES.index(suffix.lower()), suffix not in SUFFIXES, path.name

    ordered = sorted(paths, key=rank)
    twice.extend(ordered[1:])
    return ordered[0] if ordered else None


def warn_of_duplicates(twice: Sequence[Path]) -> None:
    """Warns of files that are not read, see `preferred`."""
    if twice:
        warn_once(
            f"{len(twice)} files are passed over because there is another of that name, such as "
            f"{twice[0]}: .nii.gz is read rather than .nii, and lower case rather than upper"
        )


def listing(folder: Path, most: int = 12) -> str:
    """Content of a folder, for messages."""
    names = [path.name + "/" * path.is_dir() for path in visible(folder)]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def passed_over(root: Path, cases: set[Path]) -> list[tuple[str, str]]:
    """Broken links where a case may have been: (name, message).

    Warns of folders beside the cases that hold NIfTI files and are none.

    Args:
      root: of the data.
      cases: the folders that are read.
    """
    if root in cases:
        return []
    groups = {folder.parent for folder in cases} | {root}
    known = groups | cases
    entries = [path for group in sorted(groups) for path in visible(group)]
    others = [
        path
        for path in entries
        if path.is_dir() and path not in known
        if any(stem_of(inner) is not None for inner in visible(path))
    ]
    if others and cases:
        warn_once(
            f"{len(others)} folders hold NIfTI files that are not named as a case's are, and are "
            f"passed over: {', '.join(map(str, others[:5]))}{', ...' if len(others) > 5 else ''}"
        )
    return [(p.name, why) for p in entries if not p.suffix and (why := broken_link(p))]


def broken_link(path: Path) -> str:
    """Message for a broken link; "" for anything else."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which is not there"
    return ""
