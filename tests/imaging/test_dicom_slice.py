"""One DICOM slice: what is refused because its pixels would mean something else."""

import io
import os
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, dicom_pixels
from tests import dicom_files


@pytest.fixture
def volume(rng):
    return rng.integers(0, 2000, (3, 6, 7))


def read(folder):
    return dicom.read_series(dicom.files_of(folder))


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"PixelSpacing": [-1, 1]}, r"PixelSpacing is .*-1.* but 2 finite numbers from 0.001 to"),
        ({"PixelSpacing": [0, 1]}, "PixelSpacing is"),
        ({"PixelSpacing": ["nan", "1"]}, "PixelSpacing is"),
        ({"PixelSpacing": [1]}, "PixelSpacing is"),
        ({"PixelSpacing": [1, 1, 1]}, "PixelSpacing is"),
        ({"ImagePositionPatient": ["nan", "0", "14"]}, "ImagePositionPatient is"),
        ({"ImagePositionPatient": [1e9, 0, 14]}, "ImagePositionPatient is"),
        ({"ImagePositionPatient": [0, 14]}, "ImagePositionPatient is"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, "inf", 0]}, "ImageOrientationPatient is"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two unit vectors at right angles"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0, which makes all pixels equal"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is nan, but one finite number"),
        ({"RescaleSlope": [1, 2]}, "RescaleSlope is .*one finite number"),
        ({"RescaleIntercept": "inf"}, "RescaleIntercept is inf"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "smallest value is white; tools differ"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colours or indices"),
        ({"PhotometricInterpretation": "RGB"}, "RGB: its values are colours"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "YBR_FULL: its values are colours"),
        ({"SamplesPerPixel": 3}, "1 frames of 3 colours"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "Siemens mosaic"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer by its ImageType"),
        ({"ModalityLUTSequence": [Dataset()]}, "indices into a table"),
        ({"PerFrameFunctionalGroupsSequence": [Dataset()]}, "enhanced"),
        ({"Rows": 0}, "Rows is 0, but one finite number from 1 to 32767"),
        ({"BitsStored": 17, "HighBit": 16}, "BitsAllocated is 16, BitsStored 17"),
        ({"BitsStored": 12}, "BitsStored 12, HighBit 15"),
        (
            {"BitsStored": 10, "HighBit": 9},
            "pixels have values such as .*, but 10 bits without a sign",
        ),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "BitsAllocated is 1"),
        ({"PixelRepresentation": 2}, "PixelRepresentation is 2"),
        ({"RescaleSlope": 1}, "has no RescaleSlope, but .*slice1.dcm has; .* cannot be compared"),
    ],
)
def test_a_slice_that_means_something_else_is_named(tmp_path, volume, tags, text):
    def change(data, index):
        if index == 1:
            for name, value in tags.items():
                setattr(data, name, value)

    dicom_files.write(tmp_path, volume, change=change)
    with pytest.raises(DataError, match=f"slice[01].dcm: .*{text}"):
        read(tmp_path)


def test_the_real_mosaic_is_refused_in_every_syntax(shared_data, tmp_path):
    files = sorted((shared_data / "odd" / "dcm_qa_ts" / "In").glob("*.dcm"))
    assert len(files) == 9
    for path in files:
        with pytest.raises(DataError, match=f"{path.name}: is a Siemens mosaic"):
            dicom.read_series([path])
    data = pydicom.dcmread(files[0])
    del data.ImageType
    data.save_as(tmp_path / "private.dcm")  # known by the private header, either of two
    for group in (0x0019, 0x0029):
        with pytest.raises(DataError, match="is a Siemens mosaic"):
            dicom.read_series([tmp_path / "private.dcm"])
        for tag in [element.tag for element in data if element.tag.group == group]:
            del data[tag]
        data.save_as(tmp_path / "private.dcm")


def test_signed_values_and_padding_keep_their_sign(tmp_path, volume, caplog):
    """The padding lies outside of the stored bits, as scanners write it; others lack the sign."""
    signed = volume - 1000
    signed[:, 0] = -2000
    written = signed.copy()
    written[:, 1] &= 2**11 - 1

    def change(data, index):
        data.BitsStored, data.HighBit, data.PixelRepresentation = 11, 10, 1
        data.PixelPaddingValue = -2000
        data.PixelData = written[index].astype(np.int16).tobytes()

    dicom_files.write(tmp_path, volume, change=change)
    array, _ = read(tmp_path)
    np.testing.assert_array_equal(array, signed)
    assert "16.7 % of the pixels are padding by PixelPaddingValue -2000" in caplog.text


@pytest.mark.parametrize("size", [(1, 40000), (40000, 1)])
def test_a_slice_too_long_for_any_result_is_refused(tmp_path, size):
    path = dicom_files.write(tmp_path, np.zeros((1, *size)))[0]
    with pytest.raises(DataError, match="slice0.dcm: (Rows|Columns) is 40000, but .*to 32767"):
        dicom.read_header([path])


def test_a_value_that_does_not_parse_is_named_with_its_file(tmp_path, volume):
    path = dicom_files.write(tmp_path, volume)[1]
    path.write_bytes(path.read_bytes().replace(b"2.0\\1.5", b"2.x\\1.5"))
    with pytest.raises(DataError, match="slice1.dcm: PixelSpacing"):
        read(tmp_path)


def with_bytes(change_pixels):
    def change(data, index):
        data.PixelData = change_pixels(data.PixelData)

    return change


@pytest.mark.parametrize(
    ("change_pixels", "text"),
    [
        (lambda b: b[:-2], "promises 84 bytes of pixels, 82 are there"),
        (lambda b: b + b[:14], "promises 84 bytes of pixels, 98 are there; rows or columns"),
        (lambda b: b + b"\1\1\1\1", "promises 84 bytes of pixels, 88 are there"),
    ],
)
def test_pixels_are_as_many_as_the_header_says(tmp_path, volume, change_pixels, text):
    dicom_files.write(tmp_path, volume, change=with_bytes(change_pixels))
    with pytest.raises(DataError, match=f"slice0.dcm: .*{text}"):
        read(tmp_path)


def compress(data, index):
    data.compress(RLELossless)


def test_compressed_files_hold_the_same(tmp_path, volume):
    plain, _ = dicom.read_series(dicom_files.write(tmp_path / "plain", volume))
    packed = dicom_files.write(tmp_path / "rle", volume, change=compress)
    np.testing.assert_array_equal(dicom.read_series(packed)[0], plain)

    def deflated(data, index):
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    packed = dicom_files.write(tmp_path / "deflated", volume, change=deflated)
    array, series = dicom.read_series(packed)
    np.testing.assert_array_equal(array, plain)
    assert dicom.read_header(packed).geometry.spacing_mm == series.geometry.spacing_mm


@pytest.mark.parametrize("where", ["behind", "before"])
def test_no_more_is_inflated_than_the_header_promises(tmp_path, volume, where):
    """A hundred kilobytes that hold a hundred megabytes of zeros."""

    def change(data, index):
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    path = dicom_files.write(tmp_path, volume[:1], change=change)[0]
    content = path.read_bytes()
    begin = next(
        at for at in range(140, len(content)) if _inflates(content[at:]).startswith(b"\x08\x00")
    )
    inside, packer = _inflates(content[begin:]), zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(100 << 20)
    if where == "before":  # as the value of a private attribute
        group = b"\x09\x00\x10\x10OB\0\0" + len(zeros).to_bytes(4, "little")
        at = inside.index(b"\x10\x00\x10\x00PN")
        inside = inside[:at] + group + zeros + inside[at:]
    else:
        inside += zeros
    path.write_bytes(content[:begin] + packer.compress(inside) + packer.flush())
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"slice0.dcm: "):
            dicom.read_series([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 << 20


def test_endless_small_attributes_end(tmp_path, volume):
    path = dicom_files.write(tmp_path, volume[:1])[0]
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(content[:at] + b"\x09\x00\x10\x10LO\0\0" * 30_000 + content[at:])
    with pytest.raises(DataError, match="slice0.dcm: has more than 20000 attributes"):
        dicom.read_series([path])
    path.write_bytes(content + bytes(8 << 20))  # behind the pixels nothing is looked at
    np.testing.assert_array_equal(dicom.read_series([path])[0], volume[:1])


def _inflates(content):
    try:
        return zlib.decompressobj(-15).decompress(content)
    except zlib.error:
        return b""


def test_a_compressed_image_larger_than_its_header_says_is_not_decoded(tmp_path, volume):
    def change(data, index):
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        data.PixelData = encapsulate([jpeg("JPEG2000", (500, 400))])
        data["PixelData"].is_undefined_length = True

    dicom_files.write(tmp_path, volume[:1], change=change)
    with pytest.raises(DataError, match=r"compressed image has \(500, 400\).*says \(6, 7\)"):
        read(tmp_path)


def jpeg(kind, shape):
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_the_size_of_a_compressed_image_is_its_own(kind):
    assert dicom_pixels.codestream_size(jpeg(kind, (30, 20))) == (30, 20)
    assert dicom_pixels.codestream_size(b"neither") is None


def test_run_lengths_that_cannot_make_the_pixels_are_refused(tmp_path, volume):
    def change(data, index):
        compress(data, index)
        data.Rows = data.Columns = 2000

    dicom_files.write(tmp_path, volume[:1], change=change)
    with pytest.raises(DataError, match="promises 8000000 bytes of pixels, and .* cannot be"):
        read(tmp_path)


def test_only_regular_files_are_slices(tmp_path, volume):
    dicom_files.write(tmp_path / "elsewhere", volume)
    folder = tmp_path / "series"
    folder.mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "sub.dcm").mkdir()
    array, _ = dicom.read_series(dicom.files_of(folder))  # links and folders are fine
    np.testing.assert_array_equal(array, volume)
    os.mkfifo(folder / "slice3.dcm")
    with pytest.raises(DataError, match="slice3.dcm: is no regular file"):
        dicom.files_of(folder)
    with pytest.raises(DataError, match="slice3.dcm: is a named pipe"):
        dicom.read_series([folder / "slice3.dcm"])
    (folder / "slice3.dcm").unlink()
    (tmp_path / "elsewhere" / "slice2.dcm").unlink()
    with pytest.raises(DataError, match="slice2.dcm: is a link to nothing"):
        dicom.files_of(folder)
