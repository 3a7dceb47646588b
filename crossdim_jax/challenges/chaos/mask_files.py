"""CHAOS masks: PNG files whose grey values name organs, one file for each slice.

In memory an organ is its number in `ORGANS`, counted from 1; 0 is background.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, png
from crossdim_jax.storage.files import write_bytes, writing
from crossdim_jax.storage.reading import naming

ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
GREY = (63, 126, 189, 252)  # as written
RANGES = ((55, 70), (110, 135), (175, 200), (240, 255))  # as accepted: low < value <= high


def _table() -> np.ndarray:
    """Organ of each grey value; 255 where no range holds it."""
    table = np.full(256, 255, np.uint8)
    table[0] = 0
    for organ, (low, high) in enumerate(RANGES, 1):
        table[low + 1 : high + 1] = organ
    return table


_ORGAN_OF_GREY = _table()


def files_of(folder: Path) -> tuple[Path, ...]:
    """PNG files of a folder in natural order of their names."""
    with naming(folder, "a folder of PNG masks"):
        found = [p for p in folder.iterdir() if p.suffix.lower() == ".png" and p.name[0] != "."]
    return tuple(sorted(found, key=dicom.natural))


def read(paths: Sequence[Path], *, size: tuple[int, int], any_is_liver: bool) -> np.ndarray:
    """Reads the masks of one series, (file, row, column) uint8 organ numbers.

    Args:
      paths: one for each slice.
      size: (rows, columns) of the slices.
      any_is_liver: whatever is not 0 is liver, as in the truth of CT (1-bit files). Otherwise the
        ranges of grey values decide, and a value outside all of them is an error.

    Raises DataError: a file is no PNG or cannot be read, is not grey, has another size, or holds
    other values.
    """
    masks = []  # each is as large as its file can hold; only then is memory asked for all
    for path in paths:
        grey = png.read_grey(path, size)
        masks.append((grey > 0).astype(np.uint8) if any_is_liver else _organs(path, grey))
    return np.stack(masks) if masks else np.empty((0, *size), np.uint8)


def write(folder: Path, masks: np.ndarray) -> list[Path]:
    """Writes (file, row, column) organ numbers as `img000.png`, `img001.png`, ... of 8-bit grey.

    Masks of an earlier, longer series are removed. Raises DataError if the folder cannot be
    written to.
    """
    values = np.array([0, *GREY], np.uint8)
    paths = []
    with writing(folder, "masks"):
        folder.mkdir(parents=True, exist_ok=True)
        for index, mask in enumerate(masks):
            buffer = io.BytesIO()
            Image.fromarray(values[mask]).save(buffer, "png")
            paths.append(folder / f"img{index:03d}.png")
            write_bytes(paths[-1], buffer.getvalue())
        for stale in set(folder.glob("img*.png")) - set(paths):
            stale.unlink()
    return paths


def _organs(path: Path, grey: np.ndarray) -> np.ndarray:
    organs = _ORGAN_OF_GREY[grey.astype(np.uint8)]
    if (wrong := organs == 255).any():
        values, counts = np.unique(grey[wrong].astype(np.uint8), return_counts=True)
        shown = list(zip(values.tolist(), counts.tolist(), strict=True))
        listed = ", ".join(f"{value} ({count} pixels)" for value, count in shown[:8])
        more = f" and {len(shown) - 8} more values" if len(shown) > 8 else ""
        names = ", ".join(
            f"{name} {low + 1} to {high}" for name, (low, high) in zip(ORGANS, RANGES, strict=True)
        )
        raise DataError(
            f"{path}: holds grey {listed}{more}, which no organ has (0 is background, {names}); "
            "was it scaled or saved with smoothing?"
        )
    return organs
