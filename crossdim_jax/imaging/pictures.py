"""Read and write pictures: PNG, JPEG, BMP, and TIFF of one page or of a page for each slice.

Such files say nothing of a patient: arrays are `(page, row, column)` or `(page, row, column, c)` as
on disk, and pixels are 1 mm unless a file `CASE.json` beside the picture gives
`{"spacing": [between pages, between rows, between columns]}` in mm, as nnU-Net reads it. CASE is
the name without ending and channel number (`liver_01` of `liver_01_0000.tif`).
"""

import contextlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, notes, png
from crossdim_jax.imaging.geometry import Geometry
from crossdim_jax.storage import reading
from crossdim_jax.storage.files import replacing, write_text, writing

FORMATS = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
}
_BEGIN = {"TIFF": (b"II*\0", b"MM\0*"), "JPEG": (b"\xff\xd8\xff",), "BMP": (b"BM",)}
# Modes of Pillow whose pixels are numbers as they are stored.
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_COLOURS = ("LA", "RGB", "RGBA")
_ORIENTATION, _DESCRIPTION, _PHOTOMETRIC = 274, 270, 262  # tags of EXIF and TIFF
# A page of one colour compresses to next to nothing, and small images may come of it.
_RATIO, _FREE = 1000, 1 << 25
_JSON_BYTES = 1 << 16


def read(path: str | os.PathLike, *, label: bool = False) -> tuple[np.ndarray, Geometry]:
    """Reads a picture.

    Args:
      path: ends in one of `FORMATS`; the content must be of that format.
      label: True for a label map: a palette is accepted and its indices are the values; JPEG, which
        changes values, is not.

    Returns:
      The array, (page, row, column) or (page, row, column, c) in the file's own type, and its
      geometry.

    Raises:
      DataError: another format than the name says, truncated or damaged; pixels of a kind that
        would be changed by decoding; pages of several sizes; an orientation other than upright. The
        message names the file.
    """
    path = Path(path)
    kind = _format(path)
    if label and kind == "JPEG":
        raise DataError(
            f"{path}: is a JPEG, whose compression changes values; save label maps as PNG or TIFF"
        )
    if kind == "PNG":
        array = png.read(path, palette=label)[None]
    else:
        array = _decoded(path, kind, palette=label)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return array, _geometry(path, array, label=label)


def write(
    path: str | os.PathLike, array: np.ndarray, geometry: Geometry, dtype: object = np.uint8
) -> Path:
    """Writes a label map as PNG (one page) or TIFF, all or nothing.

    Where the voxels of `geometry` are not 1 mm, `CASE.json` is written beside it.

    Args:
      path: ends in .png, .tif or .tiff; its folder is created.
      array: (page, row, column) on the grid of `geometry`.
      geometry: of the image that the map belongs to.
      dtype: uint8 or uint16, which holds all values.

    Returns:
      The path.

    Raises:
      DataError: the shape or a value does not fit, or the folder cannot be written to.
    """
    path, dtype = Path(path), np.dtype(dtype)
    kind = _format(path)
    if kind not in ("PNG", "TIFF"):
        raise DataError(f"{path}: label maps are written as .png, .tif or .tiff, which keep values")
    if dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: pictures hold uint8 or uint16, not {dtype}")
    disk = geometry.on_disk(path, array, dtype).transpose(2, 1, 0)
    if kind == "PNG" and len(disk) != 1:
        raise DataError(
            f"{path}: a PNG holds one slice, but this is a volume of {len(disk)}; write it as .tif "
            "or .nii.gz"
        )
    pages = [Image.fromarray(page) for page in np.ascontiguousarray(disk)]
    sizes = np.linalg.norm(geometry.affine[:3, :3], axis=0)[::-1]
    spacing = [round(float(size), 6) for size in sizes]
    options = {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": pages[1:]}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if spacing != [1.0, 1.0, 1.0]:
            write_text(path.with_suffix(".json"), json.dumps({"spacing": spacing}) + "\n")
        with replacing(path) as temporary:
            pages[0].save(temporary, kind, **(options if kind == "TIFF" else {}))
    return path


def _format(path: Path) -> str:
    if (kind := FORMATS.get(path.suffix.lower())) is None:
        raise DataError(f"{path}: is no picture by its name; known endings: {', '.join(FORMATS)}")
    return kind


def _decoded(path: Path, kind: str, *, palette: bool) -> np.ndarray:
    """(page, row, column) or (page, row, column, c)."""
    with reading.naming(path, f"a {kind} file"):
        content = reading.read_bytes(path)
        if not content.startswith(_BEGIN[kind]):
            raise DataError(
                f"{path}: is not a {kind} file, whatever its name says (begins with "
                f"{content[:8]!r}); save it in the format of its name"
            )
        with _opened(content, kind) as image:
            count = getattr(image, "n_frames", 1)
            _check_size(path, image, count, len(content))
            _check_tags(path, image, count)
            pages = [_page(path, image, at, palette=palette) for at in range(count)]
        return np.stack(pages) if count > 1 else pages[0][None]


@contextlib.contextmanager
def _opened(content: bytes, kind: str) -> Iterator[Image.Image]:
    """Pillow's image, of that format only; sizes are judged here, not by Pillow's one number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            yield image


def _check_size(path: Path, image: Image.Image, count: int, file_bytes: int) -> None:
    """Raises DataError if that many pixels cannot come of the bytes of the file."""
    columns, rows = image.size
    size = count * rows * columns * max(len(image.getbands()), 4)
    if size > file_bytes * _RATIO + _FREE:
        raise DataError(
            f"{path}: {count} pages of {rows} x {columns} pixels take {size} bytes, but the file "
            f"has {file_bytes}; it is truncated or damaged, {reading.AGAIN}"
        )


def _check_tags(path: Path, image: Image.Image, count: int) -> None:
    """Raises DataError if values are inverted, or there are more pages than directories.

    ImageJ and tifffile may write the directory of the first page only, and all pixels behind it.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == 0:
        raise DataError(
            f"{path}: its smallest value is white (PhotometricInterpretation 0); programs differ "
            "in whether they invert such values, save it with black as 0"
        )
    text = str(tags.get(_DESCRIPTION, ""))
    said = re.search(r"^ImageJ=.*?^images=(\d{1,9})\s*$", text, re.DOTALL | re.MULTILINE)
    if (said and int(said[1]) != count) or '"truncated": true' in text:
        raise DataError(
            f"{path}: its description promises more pages than the {count} that have a directory "
            "of their own; save it as a plain multi-page TIFF (ImageJ: below 4 GB), or as NIfTI"
        )


def _page(path: Path, image: Image.Image, at: int, *, palette: bool) -> np.ndarray:
    size, mode = image.size, image.mode
    if at:
        image.seek(at)
    where = f"{path}: page {at + 1}" if at else f"{path}:"
    if (image.size, image.mode) != (size, mode):
        raise DataError(
            f"{where} is {image.size[1]} x {image.size[0]} of mode {image.mode}, the first is "
            f"{size[1]} x {size[0]} of mode {mode}; one size and kind is expected for all slices"
        )
    if mode not in (*_GREY, *_COLOURS, *(("P",) if palette else ())):
        raise DataError(
            f"{where} is of mode {mode!r}, whose values are no intensities; save it in grey or RGB"
        )
    if (turned := image.getexif().get(_ORIENTATION, 1)) != 1:
        raise DataError(
            f"{where} is stored turned or mirrored (orientation {turned}), which programs follow "
            "or ignore; save it upright, without that tag, and its label map with it"
        )
    values = np.asarray(image)
    expected = (size[1], size[0]) if mode not in _COLOURS else (size[1], size[0], len(mode))
    if values.shape != expected:
        raise DataError(f"{where} decodes to {values.shape}, expected {expected}; {reading.AGAIN}")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _geometry(path: Path, array: np.ndarray, *, label: bool) -> Geometry:
    shape, beside = array.shape[2::-1], spacing_file(path)
    spacing = (1.0, 1.0, 1.0) if beside is None else _of_json(beside)
    if beside is None and not label:
        notes.once(
            f"{path.parent}: its {path.suffix} files have no CASE.json with a spacing, so a pixel "
            "is taken to be 1 x 1 mm and a slice 1 mm: what is measured in mm is in pixels"
        )
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])  # rows run to posterior: LPS
    grid.check_affine(path, affine)
    return Geometry.from_affine(
        path, shape, affine, array.dtype, oriented=False, measured=beside is not None
    )


def spacing_file(path: Path) -> Path | None:
    """The file beside a picture that gives its spacing; None if there is none."""
    case = re.sub(r"_\d{4}$", "", path.stem)
    names = path.with_name(f"{case}.json"), path.with_suffix(".json")
    return next((beside for beside in names if beside.exists()), None)


def _of_json(path: Path) -> tuple[float, float, float]:
    with reading.naming(path, 'a file with {"spacing": [z, y, x]}'):
        text = reading.read_bytes(path, limit=_JSON_BYTES)
        found = json.loads(text)
        spacing = found.get("spacing") if isinstance(found, dict) else None
        numbers = isinstance(spacing, list) and [
            isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in spacing
        ]
        if not numbers or len(numbers) != 3 or not all(numbers):
            raise DataError(
                f"{path}: its spacing is {str(spacing)[:60]}; three positive numbers are expected, "
                "the mm between slices, rows and columns"
            )
        return tuple(float(v) for v in spacing)
