"""Damaged DICOM slices, series and PNG masks: read, or refused by name."""

import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from crossdim_jax.imaging import dicom, png, volume
from tests import dicom_files
from tests.fuzz import harness
from tests.fuzz.harness import Format

_VOLUME = np.random.default_rng(0).integers(0, 2000, (3, 6, 7))


def _rescaled(data: pydicom.Dataset, index: int) -> None:
    data.RescaleSlope, data.RescaleIntercept = "1.5", "-1024"
    data.ImageType, data.ProtocolName = ["ORIGINAL", "PRIMARY", "AXIAL"], "abdomen"


def _slices(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in dicom_files.write(folder, _VOLUME, change=_rescaled)]


def _second(folder: Path) -> list[bytes]:
    return _slices(folder)[1:2]


def _implicit(folder: Path) -> list[bytes]:
    def change(data: pydicom.Dataset, index: int) -> None:
        _rescaled(data, index)
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    return [path.read_bytes() for path in dicom_files.write(folder, _VOLUME, change=change)]


def _run_length(folder: Path) -> list[bytes]:
    found = []
    for content in _slices(folder):
        data = pydicom.dcmread(io.BytesIO(content))
        data.compress(RLELossless)
        data.save_as(buffer := io.BytesIO(), enforce_file_format=True)
        found.append(buffer.getvalue())
    return found


def _deflate(content: bytes) -> bytes:
    """The dataset of an uncompressed file, whatever it is by now, compressed as a whole."""
    meta = pydicom.FileDataset(None, {}, preamble=b"\0" * 128, file_meta=_deflated_meta())
    meta.save_as(buffer := io.BytesIO(), enforce_file_format=True)
    head = buffer.getvalue()
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    empty = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = head[: len(head) - len(empty.compress(b"") + empty.flush())]
    begin = content.find(b"\x08\x00\x16\x00UI")  # the first attribute after the file meta
    return head + pack.compress(content[max(begin, 0) :]) + pack.flush()


def _deflated_meta() -> pydicom.dataset.FileMetaDataset:
    meta = dicom_files.dataset(_VOLUME[0], 0).file_meta
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return meta


def _middle(path: Path) -> object:
    first, _, last = sorted((path.parent / "seeds").glob("*.dcm"))
    return dicom.read_series([first, path, last])


def _one(path: Path) -> object:
    return dicom.read_series([path])


def _enhanced(folder: Path) -> list[bytes]:
    """An enhanced file, and one whose frames are compressed."""
    found = []
    for edit in (lambda data: None, lambda data: data.compress(RLELossless)):
        path, _ = dicom_files.enhanced(folder, _VOLUME, change=_rescaled, edit=edit)
        found.append(path.read_bytes())
    return found


def _masks(folder: Path) -> list[bytes]:
    grey = np.random.default_rng(0).choice(np.array([0, 63, 126, 189, 252], np.uint8), (20, 30))
    found = []
    for image in (Image.fromarray(grey), Image.fromarray(grey > 0)):
        for options in ({}, {"compress_level": 0}, {"optimize": True}):
            image.save(buffer := io.BytesIO(), "png", **options)
            found.append(buffer.getvalue())
    return found


def _mask(path: Path) -> object:
    return png.read_grey(path, (20, 30))


FORMATS = (
    Format("slice", ".dcm", _slices, _one),
    Format("implicit", ".dcm", _implicit, _one),
    Format("run-length", ".dcm", _run_length, _one),
    Format("deflated", ".dcm", _slices, _one, wrap=_deflate),
    Format("series", ".dcm", _second, _middle, folder=True),
    Format("enhanced", ".dcm", _enhanced, volume.read_image),
    Format("png", ".png", _masks, _mask),
)


@harness.few_and_thousands(FORMATS)
def test_a_damaged_file_is_read_or_named(name, count, seed, tmp_path):
    harness.run(__name__, name, tmp_path, count=count, seed=seed)
