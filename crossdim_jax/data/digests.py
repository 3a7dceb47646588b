"""SHA-256 of source files, read again only when something about a file has changed.

A file's digest is remembered with its size, its inode and both of its times. A program can set the
time of the last change of the content (mtime) back, but not that of the inode (ctime).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import volume
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.storage import reading
from crossdim_jax.storage.files import write_text

FILE = "digests.json"
# A file that was changed so shortly ago may change again within one tick of the disk's clock.
_SETTLED_NS = 2 * 10**9


def status(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """Status of a file: size, mtime and ctime in ns, inode; another content changes it."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclasses.dataclass(frozen=True)
class Content:
    """Content of a case's files, as digests.

    Attributes:
      image: digest of the names and contents of all image files.
      label: of the label's, None without a label.
      seen: (path, `status`) of each file when it was read.
    """

    image: str
    label: str | None
    seen: tuple[tuple[str, tuple[int, int, int, int]], ...] = dataclasses.field(compare=False)

    def changed(self) -> str | None:
        """First file that has changed since it was read; None if none has."""
        for path, before in self.seen:
            try:
                if status(path) != before:
                    return path
            except OSError:
                return path
        return None


class Digests:
    """Digests of files, kept in `folder` between runs.

    Several runs may share the folder: each adds to what is there. A record that cannot be read or
    written costs time, no more. Methods may be called by several threads.

    Args:
      folder: that holds `FILE`; None keeps nothing.
    """

    def __init__(self, folder: str | os.PathLike | None):
        self._path = None if folder is None else Path(folder) / FILE
        self._known, self._new = self._read(), {}

    def of_case(self, files: CaseFiles) -> Content:
        """Content of a case. Raises DataError if one of its files cannot be read."""
        seen: list[tuple[str, tuple[int, int, int, int]]] = []
        image = [self._entry(path, seen) for path in _with_voxels(files.images)]
        label = None
        if files.label is not None:
            with reading.naming(files.label):
                folder = files.label.is_dir()
                paths = sorted(files.label.iterdir()) if folder else [files.label]
            label = _digest([self._entry(path, seen) for path in _with_voxels(paths)])
        return Content(_digest(image), label, tuple(seen))

    def of(self, path: str | os.PathLike) -> str:
        """SHA-256 of one file, in hexadecimal. Raises DataError if it cannot be read."""
        return self._look(Path(path))[0]

    def save(self) -> None:
        """Writes the digests to the record in the folder."""
        if self._path is None or not self._new:
            return
        with contextlib.suppress(OSError):
            write_text(self._path, json.dumps(self._read() | self._new))
            self._new = {}

    def _entry(self, path: Path, seen: list) -> list[str]:
        digest, found = self._look(path)
        seen.append((str(path), found))
        return [path.name, digest]

    def _look(self, path: Path) -> tuple[str, tuple[int, int, int, int]]:
        with reading.naming(path):
            name, before = str(path.resolve()), status(path)
            known = self._known.get(name)
            if known and tuple(known[:-1]) == before:
                return known[-1], before
            with reading.open_regular(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if status(path) == before and before[2] < time.time_ns() - _SETTLED_NS:
                self._known[name] = self._new[name] = [*before, digest]
            return digest, before

    def _read(self) -> dict[str, list]:
        try:
            known = json.loads(self._path.read_bytes()) if self._path else {}
            return {str(k): v for k, v in known.items() if len(v) == 5 and isinstance(v[-1], str)}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _digest(entries: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _with_voxels(paths: Iterable[Path]) -> list[Path]:
    """The paths, and after each what else its image is read from, such as a file of voxels."""
    result = []
    for path in paths:
        try:
            result += volume.files_of(path)
        except DataError:  # which reading the case raises
            result.append(path)
    return result
