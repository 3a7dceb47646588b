"""Damaged volumes and pictures: read, or refused by name, in bounded memory and time."""

import bz2
import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, metaimage, nifti, volume
from tests.fuzz import harness
from tests.fuzz.harness import Format

AFFINE = np.array([[-1.0, 0, 0, 5], [0, -1.1, 0, 6], [0, 0, 2, -7], [0, 0, 0, 1]])


def nifti_files(folder: Path) -> list[bytes]:
    """NIfTI-1 and 2, integers and scaled reals, of either byte order."""
    found = []
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for order, dtype in (("<", np.uint8), (">", np.int16), ("<", np.float32)):
            header = kind.header_class(endianness=order)
            header.set_data_dtype(dtype)
            image = kind(np.arange(60, dtype=dtype).reshape(5, 4, 3), AFFINE, header)
            nib.save(image, folder / "a.nii")
            found.append((folder / "a.nii").read_bytes())
    return found


def metaimage_files(folder: Path) -> list[bytes]:
    """Headers with the voxels behind them, and one that names a file that is there."""
    lines = {
        "NDims": "3",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "HeaderSize": "0",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "0.3 0.2 1.5",
        "DimSize": "5 7 1",
        "ElementType": "MET_SHORT",
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()
    (folder.parent / "a.raw").write_bytes(bytes(70))
    return [text + b"ElementDataFile = LOCAL\n" + bytes(70), text + b"ElementDataFile = a.raw\n"]


def written_on(path: Path) -> None:
    """What is written on the grid of a file that can be read lies where the file does."""
    volume, geometry = nifti.read_nifti(path)
    label = np.zeros(volume.shape, np.uint8)
    back = nifti.write_nifti(path.with_name("back.nii"), label, geometry)
    grid.check_same(geometry, nifti.read_nifti(back)[1])


NRRD = """NRRD0004
# a comment
type: {kind}
dimension: 4
space: left-posterior-superior
sizes: 2 5 4 3
space directions: none (0.3,0.1,0) (-0.1,0.3,0) (0,0,1.5)
kinds: vector domain domain domain
endian: little
encoding: {encoding}
space origin: (1,2,3)
my key:=my value
"""


def nrrds(folder: Path) -> list[bytes]:
    """Every encoding, behind the header and in a file that is there."""
    values, found = np.arange(120, dtype=np.int16), []
    for encoding, packed in (
        ("raw", values.tobytes()),
        ("gzip", gzip.compress(values.tobytes(), 1)),
        ("bzip2", bz2.compress(values.tobytes(), 1)),
        ("ascii", " ".join(map(str, values)).encode()),
    ):
        found.append(NRRD.format(kind="short", encoding=encoding).encode() + b"\n" + packed)
    (folder.parent / "n.raw").write_bytes(values.tobytes())
    detached = NRRD.format(kind="uint16", encoding="raw") + "byte skip: 0\ndata file: n.raw\n"
    return [*found, detached.encode()]


def channels(folder: Path) -> list[bytes]:
    """MetaImage files of two values a voxel, in one file each."""
    head = metaimage_files(folder)[0].partition(b"ElementDataFile")[0]
    head += b"ElementNumberOfChannels = 2\nElementDataFile = LOCAL\n"
    return [head + bytes(140), head.replace(b"5 7 1", b"5 1 7") + bytes(140)]


def analyze(folder: Path) -> list[bytes]:
    """Headers whose voxels are in a file that is there."""
    found = []
    for order in "<>":
        header = nib.AnalyzeHeader(endianness=order)
        header.set_data_dtype(np.int16)
        header.set_data_shape((5, 7, 3))
        header.set_zooms((0.5, 0.5, 2))
        found.append(header.binaryblock)
    (folder.parent / "changed.img").write_bytes(bytes(210))
    return found


def pictures(kind: str, *modes: str, **options: object):
    """Makes pictures of those modes, of two pages where the format has pages."""

    def seeds(folder: Path) -> list[bytes]:
        found = []
        for mode in modes:
            source = np.random.default_rng(0).integers(0, 255, (12, 9, 3)).astype(np.uint8)
            image = Image.fromarray(source).convert(mode)
            more = {"save_all": True, "append_images": [image]} if kind == "TIFF" else {}
            image.save(buffer := io.BytesIO(), kind, **more, **options)
            found.append(buffer.getvalue())
        return found

    return seeds


def tiffs(folder: Path) -> list[bytes]:
    """TIFF of several kinds of pixels, plain and compressed."""
    plain = pictures("TIFF", "L", "RGB", "F", "I;16")
    return plain(folder) + pictures("TIFF", "L", "RGB", compression="tiff_adobe_deflate")(folder)


def picture(path: Path) -> object:
    """An image if it is one, else a label map (with a palette)."""
    try:
        return volume.read_image(path)
    except DataError as error:
        if "palette" not in str(error):
            raise
        return volume.read_label(path)


def oriented(path: Path) -> object:
    return volume.read_image(path, analyze_axes="LAS")


def labelled_on(path: Path) -> None:
    """A label map in another format lies where the image does, or is refused by name."""
    image, geometry = volume.read_image(path)
    label = np.zeros(image.shape[:3], np.uint8)
    back = volume.write_label(path.with_name("back.nrrd"), label, geometry)
    grid.check_same(geometry, volume.read_label(back)[1])


FORMATS = (
    Format("nifti", ".nii", nifti_files, nifti.read_nifti),
    Format("nifti label", ".nii", nifti_files, nifti.read_label),
    Format(
        "nifti gz", ".nii.gz", nifti_files, nifti.read_nifti, wrap=lambda c: gzip.compress(c, 1)
    ),
    Format(
        "damaged gz",
        ".nii.gz",
        lambda f: [gzip.compress(c) for c in nifti_files(f)],
        nifti.read_nifti,
    ),
    Format("written on", ".nii", nifti_files, written_on, folder=True),
    Format("metaimage", ".mhd", metaimage_files, metaimage.read_mhd),
    Format("metaimage channels", ".mha", channels, volume.read_image),
    Format("nrrd", ".nrrd", nrrds, labelled_on, folder=True),
    Format("analyze", ".hdr", analyze, oriented),
    Format("png picture", ".png", pictures("PNG", "L", "RGB", "LA", "I;16", "P", "1"), picture),
    Format("tiff", ".tif", tiffs, volume.read_image),
    Format("jpeg", ".jpg", pictures("JPEG", "L", "RGB"), volume.read_image),
    Format("bmp", ".bmp", pictures("BMP", "L", "RGB", "1"), volume.read_image),
)


@harness.few_and_thousands(FORMATS)
def test_damaged_files_are_read_or_refused_by_name(name, count, seed, tmp_path):
    harness.run(__name__, name, tmp_path, count=count, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in FORMATS])
def test_files_that_reach_every_branch(name, tmp_path):
    harness.run_guided(__name__, name, tmp_path, runs=5000)
