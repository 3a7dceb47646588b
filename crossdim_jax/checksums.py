"""Checksums of a folder's files, written among them, so that no damage passes unnoticed."""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from crossdim_jax.files import write_text

FILE = "checksums.json"


def write(folder: str | os.PathLike, *, without: Collection[str] = ()) -> None:
    """Records size and SHA-256 of every file under `folder`.

    Args:
      folder: complete but for this record.
      without: paths in it of files that are not recorded.

    Raises OSError.
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
    """What is wrong with the first file that is not what was recorded; None if all are.

    A folder without a record was written before there were any, and is taken as it is.
    """
    folder = Path(folder)
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{FILE} cannot be read: {error}"
    try:
        recorded = json.loads(text)
        items = [(str(name), int(size), str(digest)) for name, (size, digest) in recorded.items()]
    except (ValueError, TypeError, AttributeError) as error:
        return f"{FILE} is not a record of checksums: {error}"
    for name, size, digest in items:
        try:
            found_size, found = _account(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        if found_size != size:
            return f"{name} has {found_size} bytes, {size} were written"
        if found != digest:
            return f"{name} is not as it was written: its checksum differs"
    return None


def _account(path: Path) -> list:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [path.stat().st_size, digest]
