import os
import tracemalloc
import zlib

import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import metaimage, nifti

HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "0.308 0.154 1.54",
    "DimSize": "5 7 1",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "a.raw",
}
PIXELS = np.arange(-3, 32, dtype="<i2").reshape(7, 5)


RAW = PIXELS.tobytes()


def write(folder, raw=RAW, **changes):
    """An .mhd of PIXELS with fields changed, or left out where the change is None."""
    fields = {k: v for k, v in (HEADER | changes).items() if v is not None}
    if "ElementDataFile" in fields:
        fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last line
    if raw is not None:
        (folder / "a.raw").write_bytes(raw)
    path = folder / "a.mhd"
    path.write_text("".join(f"{k} = {v}\n" for k, v in fields.items()))
    return path


def test_rows_columns_and_spacing_are_those_of_the_header(tmp_path):
    array, geometry = metaimage.read_mhd(write(tmp_path))
    np.testing.assert_array_equal(array, PIXELS[None])
    assert array.dtype == geometry.dtype == np.int16
    assert geometry.shape == (5, 7, 1) and geometry.shape_zyx == (1, 7, 5)
    assert geometry.spacing_mm == (1.54, 0.154, 0.308)


def test_two_dimensions_are_one_frame(tmp_path):
    changes = {"NDims": "2", "TransformMatrix": "1 0 0 1", "Offset": "0 0"}
    path = write(tmp_path, **changes, ElementSpacing="0.3 0.2", DimSize="5 7")
    array, geometry = metaimage.read_mhd(path)
    np.testing.assert_array_equal(array, PIXELS[None])
    assert geometry.spacing_mm == (1.0, 0.2, 0.3)


@pytest.mark.parametrize("name", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_either_byte_order(tmp_path, name):
    array, _ = metaimage.read_mhd(write(tmp_path, PIXELS.astype(">i2").tobytes(), **{name: "True"}))
    np.testing.assert_array_equal(array[0], PIXELS)
    assert array.dtype == np.dtype(np.int16)  # native


@pytest.mark.parametrize(
    ("raw", "changes"),
    [
        (zlib.compress(RAW), {"CompressedData": "True"}),
        (b"12345678" + RAW, {"HeaderSize": "8"}),
        (b"1234567" + RAW, {"HeaderSize": "-1"}),
    ],
    ids=["compressed", "header", "tail"],
)
def test_compressed_voxels_and_voxels_behind_a_header(tmp_path, raw, changes):
    np.testing.assert_array_equal(metaimage.read_mhd(write(tmp_path, raw, **changes))[0][0], PIXELS)


def test_voxels_in_the_header_file_itself(tmp_path):
    path = write(tmp_path, None, ElementDataFile="LOCAL")
    path.write_bytes(path.read_bytes() + RAW)
    np.testing.assert_array_equal(metaimage.read_mhd(path)[0][0], PIXELS)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_what_is_written_reads_the_same(tmp_path, rng, dtype, compressed):
    axes = "0 1 0 -1 0 0 0 0 1"  # a quarter turn: the first axis runs along y
    path = write(tmp_path, TransformMatrix=axes, Offset="3.5 -2 7")
    _, geometry = metaimage.read_mhd(path)
    array = rng.integers(0, 9, (1, 7, 5)).astype(dtype)
    written = metaimage.write_mhd(
        tmp_path / "b" / "c.mhd", array, geometry, dtype, compressed=compressed
    )
    again, where = metaimage.read_mhd(written)
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype
    np.testing.assert_allclose(where.affine, geometry.affine, atol=1e-6)
    np.testing.assert_allclose(where.affine[:3, 0], [0, -0.308, 0], atol=1e-7)  # RAS+ of +y in LPS
    assert {p.suffix for p in written.parent.iterdir()} == {
        ".mhd",
        ".zraw" if compressed else ".raw",
    }


def test_a_nifti_grid_written_as_mhd_and_back(tmp_path, rng):
    _, geometry = metaimage.read_mhd(write(tmp_path, Offset="1 2 3"))
    label = rng.integers(0, 4, geometry.shape_zyx).astype(np.uint8)
    path = nifti.write_nifti(tmp_path / "a.nii.gz", label, geometry)
    read, of_nifti = nifti.read_label(path, reorient=False)
    np.testing.assert_array_equal(read, label)
    again, of_mhd = metaimage.read_mhd_label(
        metaimage.write_mhd(tmp_path / "b.mhd", read, of_nifti)
    )
    np.testing.assert_array_equal(again, label)
    np.testing.assert_allclose(of_mhd.affine, geometry.affine, atol=1e-6)
    assert of_mhd.spacing_mm == geometry.spacing_mm


@pytest.mark.parametrize(
    ("raw", "changes", "says"),
    [
        (None, {}, "a.raw: there is no such file; .*a.mhd says that its voxels are there"),
        (RAW[:-3], {}, "a.raw: holds 67 bytes of voxels, but .*a.mhd says 70"),
        (RAW + b"x", {}, "holds 71 bytes"),
        (b"x", {"CompressedData": "True"}, "a.raw: the compressed data are truncated.*a.mhd says"),
        (b"", {"ElementType": "MET_HALF"}, "'MET_HALF' is unknown; known: MET_CHAR, MET_UCHAR"),
        (b"", {"ElementSpacing": None}, "a.mhd: has no ElementSpacing"),
        (b"", {"ElementSpacing": "0.3 0 1"}, "spacing is .0.3, 0.0, 1.0.; positive"),
        (b"", {"ElementSpacing": "0.3 nan 1"}, "expected 3 numbers"),
        (b"", {"ElementSpacing": "0.3 0.3"}, "expected 3 numbers"),
        (b"", {"ElementSpacing": "a b c"}, "not a list of numbers"),
        (b"", {"DimSize": "5 0 1"}, "whole numbers from 1"),
        (b"", {"NDims": "4"}, "NDims = 4; images of 2 or 3"),
        (b"", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "TransformMatrix is not invertible"),
        (b"", {"ElementNumberOfChannels": "3"}, "one channel"),
        (b"", {"ElementDataFile": "a%03d.raw 1 3 1"}, "not one per slice"),
        (b"", {"ElementDataFile": None}, "no line 'ElementDataFile"),
        (b"", {"DimSize": "5 1e300 1"}, "DimSize = 5 1e300 1; whole numbers"),
        (b"", {"DimSize": "2e9 2e9 2e9"}, "holds 0 bytes of voxels, but .*a.mhd says 16000000000"),
        (b"", {"DimSize": "5 nan 1"}, "expected 3 numbers"),
        (b"", {"HeaderSize": "-2"}, "HeaderSize = -2; a whole number from -1"),
        (b"", {"HeaderSize": "1.5"}, "HeaderSize = 1.5; a whole number"),
        (RAW, {"HeaderSize": "1e18"}, "holds 0 bytes of voxels"),
        (
            RAW,
            {"CompressedData": "True", "CompressedDataSize": "71"},
            "holds 70 bytes, of which 71",
        ),
        (RAW, {"CompressedData": "True", "CompressedDataSize": "0"}, "whole number from 1"),
        (zlib.compress(RAW + b"x"), {"CompressedData": "True"}, "more bytes than its header"),
        (zlib.compress(RAW[1:]), {"CompressedData": "True"}, "holds 69 bytes of voxels, expected"),
        (b"", {"BinaryData": "False"}, "voxels written as text"),
        (b"", {"TransformMatrix": "1 0 0 0 2 0 0 0 1"}, r"the lengths \[1.0, 2.0, 1.0\]; 1 is"),
        (b"", {"TransformMatrix": "1e200 0 0 0 1 0 0 0 1"}, "TransformMatrix have the lengths"),
        (b"", {"ElementSpacing": "1e300 1e300 1"}, "a.mhd: its (affine|voxels)"),
        (b"", {"Offset": "1e30 0 0"}, "a.mhd: its voxels are"),
        (b"", {"ElementDataFile": "a\0.raw"}, "a.mhd: ElementDataFile = 'a.x00.raw'"),
        (b"", {"ElementDataFile": "no.raw\nDimSize = 1 1 1"}, "no.raw: there is no such file"),
    ],
)
def test_faulty_files_are_named(tmp_path, raw, changes, says):
    with pytest.raises(DataError, match=says):
        metaimage.read_mhd(write(tmp_path, raw, **changes))


def test_what_is_no_header_at_all(tmp_path):
    path = tmp_path / "a.mhd"
    path.write_bytes(bytes(range(128, 256)) * 9)
    with pytest.raises(DataError, match="a.mhd: line .* is not 'Name = value'"):
        metaimage.read_mhd(path)
    with pytest.raises(DataError, match="b.mhd: there is no such file"):
        metaimage.read_mhd(tmp_path / "b.mhd")


def test_what_cannot_be_written(tmp_path):
    path = write(tmp_path)
    _, geometry = metaimage.read_mhd(path)
    image = np.zeros((1, 7, 5))
    for array, dtype, name, says in (
        (image[:, 1:], "u1", "b.mhd", r"has shape \(1, 6, 5\)"),
        (image + 256, "u1", "b.mhd", "do not fit uint8"),
        (image, "f2", "b.mhd", "no such element type as float16"),
        (image, "u1", "b.raw", "must end in .mhd"),
        (image, "u1", "a.mhd/b.mhd", "cannot be written"),
    ):
        with pytest.raises(DataError, match=says):
            metaimage.write_mhd(tmp_path / name, array, geometry, dtype)
    assert not (tmp_path / "b.mhd").exists()
    with pytest.raises(DataError, match="not whole numbers from 0 to 255"):
        metaimage.read_mhd_label(path)  # -3


def test_an_interrupted_write_leaves_no_header(tmp_path, monkeypatch):
    _, geometry = metaimage.read_mhd(write(tmp_path))
    target = metaimage.write_mhd(tmp_path / "b.mhd", np.zeros((1, 7, 5)), geometry)

    def full(path, text):
        raise OSError("no space left")

    monkeypatch.setattr(metaimage, "write_text", full)
    with pytest.raises(DataError, match="no space left"):
        metaimage.write_mhd(target, np.ones((1, 7, 5)), geometry)
    assert not target.exists()


def test_voxels_are_read_from_files_beside_the_header_only(tmp_path):
    case = tmp_path / "case"
    case.mkdir()
    for place in (tmp_path / "secret", case / "own"):
        place.write_bytes(RAW)
    (case / "link").symlink_to(tmp_path / "secret")
    (case / "zero").symlink_to("/dev/zero")
    os.mkfifo(case / "pipe")
    for name, says in (
        ("/etc/passwd", "lies outside"),
        ("../secret", "lies outside"),
        ("link", "lies outside"),
        ("zero", "lies outside"),
        ("/dev/zero", "lies outside"),
        ("pipe", "is a named pipe"),
        (".", "is a folder"),
    ):
        path = write(case, ElementDataFile=name)
        with pytest.raises(DataError, match=f"{says}.*{path} says that its voxels are there"):
            metaimage.read_mhd(path)
    for name in ("own", str(case / "own"), "../case/own"):
        np.testing.assert_array_equal(
            metaimage.read_mhd(write(case, ElementDataFile=name))[0][0], PIXELS
        )


def test_no_more_is_read_than_the_header_says(tmp_path):
    bomb = zlib.compress(RAW + bytes(1 << 28), 1)
    huge = tmp_path / "huge.mhd"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "big").mkdir()
    claims = write(tmp_path / "big", RAW * 100_000, ElementDataFile="a.raw")
    tracemalloc.start()
    for path, says in (
        (write(tmp_path, bomb, CompressedData="True"), "a.raw: (holds more|.* cannot be 70)"),
        (huge, "huge.mhd: line "),
        (claims, "a.raw: holds 7000000 bytes of voxels, but .*a.mhd says 70"),
    ):
        with pytest.raises(DataError, match=says):
            metaimage.read_mhd(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_field_that_is_there_twice(tmp_path):
    path = write(tmp_path)
    path.write_text("DimSize = 7 5 1\n" + path.read_text())
    with pytest.raises(DataError, match="a.mhd: says DimSize twice, '7 5 1' and '5 7 1'"):
        metaimage.read_mhd(path)
    path.write_text("DimSize = 5 7 1\n" + write(tmp_path).read_text())
    np.testing.assert_array_equal(metaimage.read_mhd(path)[0][0], PIXELS)


def test_compressed_voxels_may_say_how_long_they_are(tmp_path):
    packed = zlib.compress(RAW)
    changes = {"CompressedData": "True", "CompressedDataSize": str(len(packed))}
    np.testing.assert_array_equal(
        metaimage.read_mhd(write(tmp_path, packed, **changes))[0][0], PIXELS
    )
    padded = write(tmp_path, packed + b"and more", **changes)
    np.testing.assert_array_equal(metaimage.read_mhd(padded)[0][0], PIXELS)


def test_axes_that_nobody_names_are_said_where_they_lie_in_a_patient(tmp_path, caplog):
    path = write(tmp_path, TransformMatrix=None)
    metaimage.read_mhd(path)
    assert not caplog.text
    _, geometry = metaimage.read_mhd(path, reorient=True)
    assert f"{path}: has no TransformMatrix; its axes are taken for LPS" in caplog.text
    assert geometry.axcodes == "LPS"
