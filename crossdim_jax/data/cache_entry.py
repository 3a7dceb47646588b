"""Prepared case in the cache: a folder of arrays that is written once, and its record.

An array is compared with its checksum before it is used if anything about its file has changed
since it was written. Damage below the file system, with size and times left as they were, or while
a run reads, is not noticed.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from crossdim_jax.data import digests
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import BBox
from crossdim_jax.storage.files import write_text

logger = logging.getLogger(__name__)

_META = "meta.json"


@dataclasses.dataclass(frozen=True)
class CachedCase:
    """Prepared case on disk.

    Files are opened at each access and closed with the last reference: a map held open for every
    case of a large set would exceed the usual limit of open files.

    Attributes:
      id, patient: as in `CaseFiles`.
      folder: holds image.npy, label.npy, foreground.npy and meta.json.
      shape: (z, y, x) of the crop.
      spacing_mm: (z, y, x).
      bbox, full_shape: where the crop lay, see `imaging.case.Prepared`.
      kind: as in `CaseFiles`.
      note: see `imaging.case.Prepared`.
    """

    id: str
    patient: str
    folder: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    bbox: BBox
    full_shape: tuple[int, int, int]
    kind: str = ""
    note: str = ""

    @property
    def image(self) -> np.ndarray:
        """Image (z, y, x, c) float32 or float16, z-scored; read-only, memory-mapped."""
        return self._map("image")

    @property
    def label(self) -> np.ndarray | None:
        """Label (z, y, x) uint8 in the convention of the files; None if the case has none."""
        return self._map("label") if (self.folder / "label.npy").exists() else None

    @property
    def foreground(self) -> np.ndarray:
        """Foreground voxels, (n, 4) integers, sorted: region number, z, y, x.

        All voxels of each region, or a random subset of `MAX_FOREGROUND`.
        """
        return self._map("foreground")

    def _map(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape = np.lib.format.read_array_header_1_0(file)[0]
            # Empty arrays cannot be mapped.
            mode = "r" if np.prod(shape) else None
            return np.load(path, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise DataError(
                f"{path}: the cached case cannot be read ({error}); remove the folder "
                f"{self.folder} and run again"
            ) from error


def write(case: CachedCase, arrays: dict[str, np.ndarray], digest: str) -> None:
    """Writes a case's folder atomically: under another name, then renamed."""
    temporary = case.folder.with_name(f".{digest[:16]}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            with path.open("rb") as file:  # else a crash may leave zeros of the right size
                os.fsync(file.fileno())
        meta = dataclasses.asdict(case) | {
            "key": digest,
            "files": {path.name: _account(path) for path in sorted(temporary.iterdir())},
        }
        del meta["folder"], meta["patient"]
        _write_meta(temporary, meta)
        _put(temporary, case, digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, case: CachedCase, digest: str) -> None:
    """Renames the folder, unless another run was faster: its content is the same.

    What is damaged there is set aside first; another run may be doing so as well.
    """
    aside = temporary.with_suffix(".old.tmp")
    try:
        for last in (False, True):
            try:
                return os.replace(temporary, case.folder)
            except OSError:
                if read(case.folder, digest, case.patient):
                    return
                if last:
                    raise
            with contextlib.suppress(FileNotFoundError):
                os.replace(case.folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_meta(folder: Path, meta: dict) -> None:
    text = json.dumps(meta, sort_keys=True)
    write_text(folder / _META, json.dumps([meta, _sha256(text)], indent=1, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _account(path: Path) -> list:
    """Checksum, size and times of an array's file; a copy has other times, the same checksum."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return [checksum, *digests.status(path)[:3]]


def read(folder: Path, digest: str, patient: str) -> CachedCase | None:
    """Reads the case in `folder`; None if it is absent or, with a warning, damaged."""
    if not folder.exists():
        return None
    try:
        meta, checksum = json.loads((folder / _META).read_bytes())
        if _sha256(json.dumps(meta, sort_keys=True)) != checksum:
            raise ValueError(f"{_META} does not fit its checksum")
        if meta["key"] != digest:
            raise ValueError(f"{_META} is of another case")
        _check_arrays(folder, meta)
        return CachedCase(
            id=meta["id"],
            patient=patient,
            folder=folder,
            shape=tuple(meta["shape"]),
            spacing_mm=tuple(meta["spacing_mm"]),
            bbox=tuple(tuple(bounds) for bounds in meta["bbox"]),
            full_shape=tuple(meta["full_shape"]),
            kind=meta["kind"],
            note=meta["note"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: the cached case is damaged (%s); it is made again", folder, error)
        return None


def _check_arrays(folder: Path, meta: dict) -> None:
    """Raises ValueError if an array is not what was written; OSError if it is gone.

    Its checksum is taken only if size or times are others; it is enough to do so once for a copy.
    """
    seen_anew = {}
    for name, (checksum, *before) in meta["files"].items():
        path = folder / name
        if list(digests.status(path)[:3]) == before:
            continue
        seen_anew[name] = _account(path)
        if seen_anew[name][0] != checksum:
            raise ValueError(f"{name} does not fit its checksum")
    if seen_anew:
        with contextlib.suppress(OSError):
            _write_meta(folder, meta | {"files": meta["files"] | seen_anew})
