"""Checksums of a folder's files, written among them, so that no damage passes unnoticed."""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from crossdim_jax.errors import DataError
from crossdim_jax.storage.files import write_text
from crossdim_jax.storage.reading import naming, open_regular
from crossdim_jax.storage.records import read_record

FILE = "checksums.json"


def write(folder: str | os.PathLike, *, without: Collection[str] = ()) -> None:
    """Records size and SHA-256 of every file under `folder`.

    Args:
      folder: complete but for this record.
      without: paths in it of files that are not recorded.

    Raises OSError, or DataError for a file that cannot be read.
    """
    folder = Path(folder)
    skipped = {FILE, *without}
    sums = {
        name: _account(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := str(path.relative_to(folder))) not in skipped
    }
    write_text(folder / FILE, json.dumps(sums, indent=0))


def damage(folder: str | os.PathLike) -> str | None:
    """Damage of the first file that is not what was recorded; None if all are.

    A folder without a record was written before there were any, and is taken as it is.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / FILE):
        return None
    try:
        recorded = read_record(folder / FILE, remedy="not used")
    except DataError as error:
        return f"{FILE} is not a record of checksums: {_reason(error, folder / FILE)}"
    items = []
    for name, account in recorded.items():
        match account:
            case [int(size), str(digest)]:
                items.append((name, size, digest))
            case _:
                return f"{FILE} is not a record of checksums: {name[:200]!r} has no size and digest"
    for name, size, digest in items:
        try:
            found_size, found = _account(folder / name, inside=folder)
        except DataError as error:
            return f"{name} cannot be read: {_reason(error, folder / name)}"
        if found_size != size:
            return f"{name} has {found_size} bytes, {size} were written"
        if found != digest:
            return f"{name} is not as it was written: its checksum differs"
    return None


def _reason(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _account(path: Path, *, inside: Path | None = None) -> list:
    with open_regular(path, inside=inside) as file, naming(path):
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [os.fstat(file.fileno()).st_size, digest]
