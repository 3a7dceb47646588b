"""DICOM series: where slices lie, and every way in which a folder is no series."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.uid import JPEGLosslessSV1

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom
from tests import dicom_files


@pytest.fixture
def volume(rng):
    return rng.integers(0, 2000, (5, 6, 7))


def read(folder):
    return dicom.read_series(dicom.files_of(folder))


@pytest.mark.parametrize("down", [False, True])
def test_z_grows_upwards_and_files_keep_their_order(tmp_path, volume, down):
    dicom_files.write(tmp_path, volume, down=down)
    array, series = read(tmp_path)
    np.testing.assert_array_equal(array, volume[::-1] if down else volume)
    assert series.geometry.spacing_mm == (4.0, 2.0, 1.5)  # and not SliceThickness
    assert series.geometry.shape_zyx == array.shape and series.modality == "CT"
    # The centre of the first file's first pixel, in RAS+.
    z = 26.0 if down else 10.0
    np.testing.assert_allclose(series.geometry.affine @ [0, 0, 0, 1], [20, 30, z, 1])
    np.testing.assert_array_equal(series.to_slices(array), volume)
    np.testing.assert_array_equal(series.to_volume(volume), array)


def test_names_are_ordered_as_people_count(tmp_path, rng):
    volume = rng.integers(0, 2000, (12, 4, 4))
    dicom_files.write(tmp_path, volume, names=lambda i: f"IMG-{i + 1}.dcm", down=True)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("none of the series")
    files = dicom.files_of(tmp_path)
    assert [path.name for path in files] == [f"IMG-{i}.dcm" for i in range(1, 13)]
    array, series = read(tmp_path)
    np.testing.assert_array_equal(array, volume[::-1])
    np.testing.assert_array_equal(series.to_slices(array), volume)


def test_names_in_no_order_at_all_still_pair(tmp_path, volume):
    order = [3, 0, 4, 1, 2]
    dicom_files.write(tmp_path, volume, names=lambda i: f"{order[i]}.dcm")
    array, series = read(tmp_path)
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_allclose(series.geometry.affine @ [0, 0, 0, 1], [20, 30, 10, 1])
    by_name = volume[np.argsort(order)]
    np.testing.assert_array_equal(series.to_slices(array), by_name)
    np.testing.assert_array_equal(series.to_volume(by_name), array)


def test_slope_and_intercept_are_each_files_own(tmp_path, volume):
    def change(data, index):
        data.RescaleSlope, data.RescaleIntercept = 1 + index, -1000 + index

    dicom_files.write(tmp_path, volume, change=change)
    array, _ = read(tmp_path)
    index = np.arange(5)[:, None, None]
    np.testing.assert_allclose(array, volume * (1 + index) - 1000 + index)


def test_slices_of_any_orientation_come_out_axial(tmp_path, volume):
    """Coronal slices, from front to back: rows go down, so z falls with them."""

    def change(data, index):
        data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        data.ImagePositionPatient = [-20.0, -30.0 + 4 * index, 50.0]

    dicom_files.write(tmp_path, volume, change=change)
    array, series = read(tmp_path)
    np.testing.assert_array_equal(array, volume.transpose(1, 0, 2)[::-1])
    assert series.geometry.spacing_mm == (2.0, 4.0, 1.5)
    assert nib.aff2axcodes(series.geometry.affine) == ("L", "I", "P")
    np.testing.assert_array_equal(series.to_slices(array), volume)


def test_one_identifier_for_each_file_is_one_series(tmp_path, volume):
    def change(data, index):
        data.SeriesInstanceUID = data.FrameOfReferenceUID = f"1.2.{index}"

    dicom_files.write(tmp_path, volume, change=change)
    np.testing.assert_array_equal(read(tmp_path)[0], volume)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"SpacingBetweenSlices": 5.5}, (5.5, "SpacingBetweenSlices")),
        ({}, (9.0, "SliceThickness")),
        ({"SliceThickness": None}, None),
    ],
)
def test_a_single_slice_is_as_thick_as_its_header_says(tmp_path, volume, tags, expected):
    def change(data, index):
        for name, value in tags.items():
            setattr(data, name, value)

    dicom_files.write(tmp_path, volume[:1], change=change)
    if expected is None:
        with pytest.raises(DataError, match="neither SpacingBetweenSlices nor SliceThickness"):
            read(tmp_path)
        return
    array, series = read(tmp_path)
    assert array.shape == (1, 6, 7)
    assert (series.geometry.spacing_mm[0], series.spacing_from) == expected


def test_a_missing_slice_is_named_by_its_neighbours(tmp_path, volume):
    paths = dicom_files.write(tmp_path, volume)
    paths[2].unlink()
    with pytest.raises(DataError, match=r"slice3.dcm: lies 8 mm from .*slice1.dcm.* 1 missing"):
        read(tmp_path)


def mixed_in(data, **tags):
    for name, value in tags.items():
        setattr(data, name, value)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "slice3.dcm: ImageOrientationPatient"),
        ({"PixelSpacing": [1.0, 1.0]}, "slice3.dcm: PixelSpacing is .*1.0, 1.0.*, but .*2.0, 1.5"),
        ({"Modality": "MR"}, "slice3.dcm: Modality is MR, but CT"),
        ({"FrameOfReferenceUID": "1.9"}, r"2 different FrameOfReferenceUID: 1.4 \(4 files\)"),
        ({"SeriesInstanceUID": "1.9"}, r"2 different SeriesInstanceUID: 1.3 \(4 files\)"),
        ({"ImagePositionPatient": [-20.0, -30.0, 10.0]}, "at the same position as .*slice"),
        ({"ImagePositionPatient": [40.0, -30.0, 22.0]}, "slice3.dcm: lies .* mm beside the line"),
    ],
)
def test_several_series_in_one_folder_are_told_apart(tmp_path, volume, tags, text):
    dicom_files.write(tmp_path, volume, change=lambda d, i: mixed_in(d, **tags) if i == 3 else None)
    with pytest.raises(DataError, match=f"(?s){text}.*folder of its own"):
        read(tmp_path)


def test_slices_of_different_size_are_refused(tmp_path, volume):
    dicom_files.write(tmp_path, volume)
    dicom_files.write(tmp_path, volume[:1, :5], names=lambda i: "slice2.dcm")
    with pytest.raises(DataError, match=r"slice2.dcm: has 5 x 7 pixels, but .* 6 x 7"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
)
def test_a_series_without_its_place_is_refused(tmp_path, volume, name):
    dicom_files.write(tmp_path, volume, change=lambda data, i: delattr(data, name))
    with pytest.raises(DataError, match=f"slice0.dcm: has no {name}"):
        read(tmp_path)


def test_compressed_pixels_without_a_decoder_say_what_to_install(tmp_path, volume, monkeypatch):
    def change(data, index):
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        data["PixelData"].is_undefined_length = True

    dicom_files.write(tmp_path, volume, change=change)
    # Whatever decoders this machine has.
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    with pytest.raises(DataError, match=r"\(JPEG Lossless.*crossdim_jax.formats.*gdcmconv"):
        read(tmp_path)


@pytest.mark.parametrize("kept", [200, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, volume, kept):
    path = dicom_files.write(tmp_path, np.repeat(volume, 40, 2))[2]
    raw = path.read_bytes()
    path.write_bytes(raw[: kept if kept > 1 else int(kept * len(raw))])
    with pytest.raises(DataError, match="slice2.dcm: .*(truncated|no Image)"):
        read(tmp_path)


def test_what_is_not_dicom_is_named(tmp_path, volume):
    dicom_files.write(tmp_path, volume)
    (tmp_path / "slice2.dcm").write_text("a text")
    with pytest.raises(DataError, match="slice2.dcm: is not a DICOM file"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot be read|is no regular file|no such file"):
        dicom.files_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no file"):
        dicom.files_of(tmp_path / "empty")


def test_several_frames_in_a_file_are_refused(tmp_path, volume):
    def change(data, index):
        data.NumberOfFrames = 2
        data.PixelData += data.PixelData

    dicom_files.write(tmp_path, volume, change=change)
    with pytest.raises(DataError, match="holds 2 frames of 1 colours"):
        read(tmp_path)


def test_the_real_series_reads_in_hounsfield_units(shared_data):
    folder = shared_data / "chaos" / "Train_Sets" / "CT" / "1" / "DICOM_anon"
    files = dicom.files_of(folder)
    array, series = dicom.read_series(files[::26])  # every 26th: evenly spaced too
    assert array.shape == (3, 512, 512) and array.min() == -1000
    assert series.planes == (0, 1, 2) and series.geometry.axcodes == "LPI"
    assert dicom.read_header(files).geometry.spacing_mm == (2.0, 0.726562, 0.726562)


@pytest.mark.parametrize("degrees", [15.0, 1.0])
def test_a_tilted_gantry_is_refused_in_degrees_and_millimetres(tmp_path, rng, degrees):
    """Rows are tilted, but positions move along z alone."""
    angle = np.radians(degrees)

    def change(data, index):
        data.ImageOrientationPatient = [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]

    dicom_files.write(tmp_path, rng.integers(0, 9, (20, 64, 8)), change=change)
    with pytest.raises(DataError, match=rf"{degrees:g} degrees away .* up to \d+(\.\d+)? mm"):
        read(tmp_path)


def test_slices_that_end_otherwise_are_said(tmp_path, volume, caplog):
    files = dicom_files.write(tmp_path, volume)
    files[-1].rename(tmp_path / "slice3.dcm.bak")
    (tmp_path / "readme.txt").write_text("no slice")
    assert len(dicom.files_of(tmp_path)) == len(files) - 1
    assert "1 DICOM files that do not end in .dcm are passed over (slice3.dcm.bak)" in caplog.text
    assert "readme" not in caplog.text


def test_a_user_may_accept_a_tilt_that_the_error_tells(tmp_path, rng):
    def change(data, index):
        data.ImageOrientationPatient = [1, 0, 0, 0, np.cos(0.01), -np.sin(0.01)]

    volume = rng.integers(0, 9, (20, 64, 8))
    files = dicom_files.write(tmp_path, volume, change=change)
    with pytest.raises(DataError, match=r"0.2 mm are accepted.*grid_tolerance_mm=") as error:
        dicom.read_series(files)
    told = float(str(error.value).rpartition("=")[2])
    assert dicom.read_series(files, tolerance_mm=told)[0].shape == volume.shape
    with pytest.raises(DataError, match=f"{told / 2:g} mm are accepted"):
        dicom.read_series(files, tolerance_mm=told / 2)


def test_slices_a_little_aside_are_read_and_others_named(tmp_path, volume):
    def aside(mm):
        def change(data, index):
            data.ImagePositionPatient = [-20.0 + mm * (index == 2), -30.0, 10 + 4 * index]

        return change

    dicom_files.write(tmp_path / "little", volume, change=aside(0.15))
    np.testing.assert_array_equal(read(tmp_path / "little")[0], volume)
    dicom_files.write(tmp_path / "more", volume, change=aside(0.3))
    with pytest.raises(DataError, match=r"slice2.dcm: lies 0.3 mm beside the line"):
        read(tmp_path / "more")


def test_slices_a_little_turned_are_refused_by_millimetres(tmp_path, rng):
    """Less than a thousandth, and half a millimetre at the far corner."""

    def change(data, index):
        data.PixelSpacing = [2.0 + 0.0009 * (index == 1), 1.5]

    dicom_files.write(tmp_path, rng.integers(0, 9, (3, 500, 4)), change=change)
    with pytest.raises(DataError, match=r"slice1.dcm: PixelSpacing .* corner by 0.449 mm"):
        read(tmp_path)


def test_steps_that_grow_are_refused_though_each_is_near_the_usual_one(tmp_path, rng):
    def change(data, index):
        data.ImagePositionPatient = [-20.0, -30.0, 4 * index + 0.04 * max(0, index - 5) * index]

    dicom_files.write(tmp_path, rng.integers(0, 9, (12, 4, 4)), change=change)
    with pytest.raises(DataError, match=r"mm beside the line|mm apart"):
        read(tmp_path)


def test_any_names_have_one_order(tmp_path):
    names = [
        "a10",
        "a2",
        "a\u00b2",
        "1\u00b22",
        "\u00b2",
        "2",
        "10",
        "x",
        "\u0661",
        "a02",
        "A2",
        "",
        "a1b2",
        "a1b10",
    ]
    paths = [tmp_path / f"{name}.dcm" for name in names]
    ordered = sorted(paths, key=dicom.natural)
    for _ in range(5):
        paths = [*paths[3:], *reversed(paths[:3])]
        assert sorted(paths, key=dicom.natural) == ordered
    at = {path.stem: place for place, path in enumerate(ordered)}
    assert at["2"] < at["10"] and at["a2"] < at["a10"] and at["a1b2"] < at["a1b10"]


@pytest.mark.parametrize("number", range(2, 10))
def test_one_slice_is_the_same_in_every_transfer_syntax(shared_data, tmp_path, number):
    """Compressed without a decoder, it is refused with the name of the extra that brings one."""
    found = []
    for at in (1, number):
        data = pydicom.dcmread(shared_data / "odd" / "dcm_qa_ts" / "In" / f"{at}.dcm")
        data.ImageType, data.SpacingBetweenSlices = ["ORIGINAL", "PRIMARY"], 3
        data.remove_private_tags()  # which say that it is a mosaic
        data.save_as(tmp_path / f"{at}.dcm")
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            with pytest.raises(DataError, match=rf'{at}.dcm: .*pip install "crossdim_jax.formats.'):
                dicom.read_series([tmp_path / f"{at}.dcm"])
            return
        found.append(dicom.read_series([tmp_path / f"{at}.dcm"])[0])
    assert found[0].max() > 100
    np.testing.assert_array_equal(*found)
