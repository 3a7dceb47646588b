"""Enhanced DICOM files: each is the volume that the same slices make as a classic series."""

import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.uid import RLELossless, generate_uid

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, dicom_frames, volume
from tests import dicom_files

TILT = [0.8, 0.6, 0.0, 0.0, 0.0, -1.0]  # a coronal plane, turned


def enhanced(folder, stored, **options):
    return dicom_files.enhanced(folder, stored, **({"change": tilted} | options))


@pytest.fixture
def stored(rng):
    return rng.integers(0, 2000, (4, 6, 7))


def tilted(data, index):
    data.ImageOrientationPatient = TILT
    normal = np.cross(TILT[:3], TILT[3:])
    data.ImagePositionPatient = [float(v) for v in np.round([5.0, -7, 9] + 3 * index * normal, 6)]
    data.RescaleSlope, data.RescaleIntercept = str(1 + index / 4), str(-10 * index)


@pytest.mark.parametrize("order", [None, (2, 0, 3, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("shared", [True, False])
def test_it_is_the_volume_of_the_classic_series(tmp_path, stored, order, shared):
    path, classic = enhanced(tmp_path, stored, order=order, shared=shared)
    expected, series = dicom.read_series(classic)
    array, geometry = volume.read_image(path)
    np.testing.assert_array_equal(array, expected)
    # Planes are counted from either end, by the first frame.
    np.testing.assert_allclose(
        np.abs(geometry.affine[:3, :3]), np.abs(series.geometry.affine[:3, :3])
    )
    corners = [g.to_lps(_places(g)) for g in (geometry, series.geometry)]
    np.testing.assert_allclose(*corners, atol=1e-9)
    assert geometry.path == path and geometry.spacing_mm == (2.0, 3.0, 1.5)


def _places(geometry):
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    return index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]


def test_one_that_highdicom_writes(tmp_path, stored):
    def change(data, index):
        data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = ""
        data.PatientBirthDate = data.PatientSex = data.ReferringPhysicianName = ""
        data.Manufacturer, data.SeriesNumber, data.InstanceNumber = "m", "1", str(index + 1)
        data.PositionReferenceIndicator = ""
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.RescaleSlope, data.RescaleIntercept = "2", "-1000"
        data.SliceThickness, data.PatientName = dicom_files.STEP_MM, "p^"

    classic = dicom_files.write(tmp_path / "classic", stored, down=True, change=change)
    made = LegacyConvertedEnhancedCTImage(
        *([pydicom.dcmread(path) for path in classic], generate_uid(), 2, generate_uid(), 1)
    )
    made.save_as(tmp_path / "a.dcm")
    expected, series = dicom.read_series(classic)
    array, geometry = volume.read_image(tmp_path / "a.dcm")
    np.testing.assert_array_equal(array, expected)
    assert array.min() >= -1000 and geometry.spacing_mm == series.geometry.spacing_mm
    np.testing.assert_allclose(
        geometry.to_lps(_places(geometry)), series.geometry.to_lps(_places(series.geometry))
    )


def test_real_ones_are_their_classic_series_and_lie_where_their_labels_do(shared_data):
    for name in ("23x38x3", "24x38x3"):
        folder = shared_data / "odd" / "dcmqi" / name
        array, geometry = volume.read_image(folder / "multiframe" / "mf.dcm")
        expected, series = volume.read_image(folder / "image")
        np.testing.assert_array_equal(array, expected)
        label, of_label = volume.read_label(folder / "nrrd" / "label.nrrd")
        assert label.shape == array.shape
        for other in (series, of_label):
            places = [g.to_lps(_places(g)) for g in (geometry, other)]
            np.testing.assert_allclose(*places, atol=1e-3)


def test_frames_may_be_compressed(tmp_path, stored):
    path, classic = enhanced(tmp_path, stored, edit=lambda data: data.compress(RLELossless))
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == RLELossless
    np.testing.assert_array_equal(volume.read_image(path)[0], dicom.read_series(classic)[0])


def test_one_frame(tmp_path, stored):
    path, classic = enhanced(tmp_path, stored[:1])
    array, geometry = volume.read_image(path)
    np.testing.assert_array_equal(array, dicom.read_series(classic)[0])
    assert geometry.spacing_mm == (2.0, 9.0, 1.5)


def twice(data, index):
    tilted(data, index % 2)


def fewer(data):
    data.PerFrameFunctionalGroupsSequence.pop()


def turn_one(data):
    own = data.PerFrameFunctionalGroupsSequence[2]
    own.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"change": twice}, "holds 4 frames at 2 positions: a series in time"),
        ({"edit": fewer}, "has 3 items in PerFrameFunctionalGroupsSequence, but 4 frames"),
        ({"edit": turn_one, "shared": False}, "frame 3: ImageOrientationPatient is"),
        ({"edit": lambda d: setattr(d, "NumberOfFrames", 5)}, "promises 5 frames of 84 bytes"),
        ({"edit": lambda d: setattr(d, "NumberOfFrames", 30000)}, "NumberOfFrames is '30000'"),
        ({"edit": lambda d: setattr(d, "Modality", "SEG")}, "is a DICOM segmentation"),
        ({"edit": lambda d: setattr(d, "PixelData", d.PixelData[:-4])}, "336 bytes|332"),
        ({"edit": lambda d: setattr(d, "Rows", 0)}, "promises 4 frames of 0 bytes"),
        (
            {"edit": lambda d: setattr(d, "SharedFunctionalGroupsSequence", None)},
            "has no ImageOrie",
        ),
        (
            {"edit": lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "MOSAIC"])},
            "a Siemens",
        ),
        ({"edit": lambda d: d.pop("PixelData")}, "holds no pixels"),
    ],
)
def test_faulty_files_are_named(tmp_path, stored, options, says):
    path, _ = enhanced(tmp_path, stored, **options)
    with pytest.raises(DataError, match=f"enhanced.dcm.*({says})"):
        volume.read_image(path)


def test_a_missing_frame_is_a_gap(tmp_path, stored):
    path, _ = enhanced(tmp_path, np.concatenate([stored, stored]), order=(0, 1, 2, 4, 5))
    with pytest.raises(DataError, match="enhanced.dcm/frame 4: lies 6 mm from .*1 missing there"):
        volume.read_image(path)


def test_it_is_alone_in_its_folder(tmp_path, stored):
    path, classic = enhanced(tmp_path, stored)
    (tmp_path / "both").mkdir()
    for number, source in enumerate((path, classic[0])):
        (tmp_path / "both" / f"{number}.dcm").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="0.dcm: is an enhanced .* holds 2 files"):
        volume.read_image(tmp_path / "both")
    with pytest.raises(DataError, match="enhanced.dcm: holds 4 frames"):
        dicom.read_series([path])
    assert dicom_frames.is_enhanced(path) and not dicom_frames.is_enhanced(classic[0])
