"""Folder of phantoms: theirs alone, and recognised by their record in it."""

from pathlib import Path

from crossdim_jax.errors import DataError


def refuse_foreign(root: Path, record: str) -> None:
    """Raises DataError if `root` holds files, other than hidden ones, and no record of phantoms.

    record: the name of the file that says what was made.
    """
    visible = [p for p in root.iterdir() if not p.name.startswith(".")] if root.is_dir() else []
    if visible and not (root / record).is_file():
        raise DataError(
            f"{root}: holds {visible[0].name} and no {record}, so its files are not phantoms; "
            "choose an empty folder"
        )
