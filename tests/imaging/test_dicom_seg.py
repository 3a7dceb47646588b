"""DICOM segmentations: what they say of the patient, and that they can do without."""

import getpass
import os
import socket
from pathlib import Path

import numpy as np
import pydicom
import pytest

from crossdim_jax.challenges.chaos.challenge import Chaos
from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, dicom_seg
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.imaging.dicom_seg import Segment
from tests import dicom_files

# Attributes of a source, with values that are found again wherever they go.
IDENTIFYING = {
    "PatientName": "Q1^Quelle", "PatientID": "Q2", "PatientBirthDate": "19010203",
    "PatientSex": "O", "PatientAge": "077Y", "PatientWeight": "77.25", "PatientSize": "1.875",
    "PatientComments": "Q3", "OtherPatientNames": "Q4^Quelle", "EthnicGroup": "Q5",
    "Occupation": "Q6", "AdditionalPatientHistory": "Q7",
    "AccessionNumber": "Q8", "StudyID": "Q9", "StudyDate": "20010203", "StudyTime": "010203",
    "StudyDescription": "Q10", "ReferringPhysicianName": "Q11^Quelle", "AdmissionID": "Q12",
    "NameOfPhysiciansReadingStudy": "Q13^Quelle", "ClinicalTrialSubjectID": "Q14",
    "InstitutionName": "Q15", "InstitutionAddress": "Q16", "StationName": "Q17",
    "DeviceSerialNumber": "Q18", "Manufacturer": "Q19", "ManufacturerModelName": "Q20",
    "SoftwareVersions": "Q21", "OperatorsName": "Q22^Quelle", "PerformingPhysicianName": "Q23^Q",
    "SeriesDescription": "Q24", "ProtocolName": "Q25", "ImageComments": "Q26",
    "SeriesDate": "20010204", "AcquisitionDate": "20010205", "ContentDate": "20010206",
    "PositionReferenceIndicator": "Q27", "PatientAddress": "Q28", "IssuerOfPatientID": "Q29",
}  # fmt: skip
# Those that go into a segmentation by default, as the documentation lists them.
COPIED = {
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight",
    "PatientSize", "PatientComments", "OtherPatientNames", "Occupation",
    "AdditionalPatientHistory", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "StudyDescription", "ReferringPhysicianName", "AdmissionID",
    "NameOfPhysiciansReadingStudy", "ClinicalTrialSubjectID", "IssuerOfPatientID",
    "PositionReferenceIndicator",
    "Manufacturer", "ManufacturerModelName", "InstitutionName", "InstitutionAddress",
    "StationName", "DeviceSerialNumber", "SoftwareVersions",
}  # fmt: skip
UIDS = {
    "StudyInstanceUID": "1.2.77",
    "SeriesInstanceUID": "1.3.77",
    "FrameOfReferenceUID": "1.4.77",
}
SEGMENTS = (Segment("liver", "Liver", "#e8352e"), Segment("kidney", "Kidney", "#f7d23e", "Right"))


@pytest.fixture
def series(tmp_path):
    def change(data, index):
        for name, value in (IDENTIFYING | UIDS).items():
            setattr(data, name, value)
        data.add_new(0x00091010, "LO", "Q99")

    return dicom.read_header(
        dicom_files.write(tmp_path / "series", np.zeros((3, 6, 5)), change=change)
    )


def written(series, path, **options):
    pytest.importorskip("highdicom")
    label = np.zeros((3, 6, 5), np.uint8)
    label[1, 2:4, 1:3] = 2
    dicom_seg.write(path, series, label, SEGMENTS, **options)
    return pydicom.dcmread(path)


def holders(segmentation, values):
    """Names of the attributes, in sequences too, that hold one of the values."""
    found = {}
    for element in segmentation.iterall():
        if element.VR != "SQ" and str(element.value) in values:
            found[str(element.value)] = element.keyword
    return found


def test_what_is_copied_of_the_patient_is_what_is_documented(series, tmp_path):
    segmentation = written(series, tmp_path / "a.seg.dcm")
    values = {str(value): name for name, value in IDENTIFYING.items()}
    found = holders(segmentation, values)
    assert {values[value] for value in found} == COPIED
    assert "Q99" not in str(segmentation)
    text = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text(encoding="utf-8")
    assert not [name for name in COPIED if name not in text]


def test_a_segmentation_without_patient_holds_nothing_but_the_uids(series, tmp_path):
    segmentation = written(series, tmp_path / "a.seg.dcm", deidentify=True)
    assert holders(segmentation, {str(v) for v in IDENTIFYING.values()}) == {}
    assert b"Q1" not in (tmp_path / "a.seg.dcm").read_bytes()
    for name, value in UIDS.items():
        assert value in [str(e.value) for e in segmentation.iterall() if e.keyword == name]
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
                 "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
        assert name in segmentation and not segmentation.get(name)
    assert segmentation.PatientIdentityRemoved == "YES" and segmentation.DeidentificationMethod
    # Viewers find the same pixels on the same slices.
    other = written(series, tmp_path / "b.seg.dcm")
    assert segmentation.PixelData == other.PixelData
    assert segmentation.ReferencedSeriesSequence == other.ReferencedSeriesSequence
    assert segmentation.SharedFunctionalGroupsSequence == other.SharedFunctionalGroupsSequence
    assert segmentation.PerFrameFunctionalGroupsSequence == other.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize("deidentify", [False, True])
def test_nothing_tells_of_the_machine_it_was_written_on(series, tmp_path, deidentify):
    written(series, tmp_path / "a.seg.dcm", deidentify=deidentify)
    content = (tmp_path / "a.seg.dcm").read_bytes()
    assert str(tmp_path).encode() not in content
    for name in (socket.gethostname(), getpass.getuser()):  # short ones occur by chance
        assert len(name) < 4 or name.encode() not in content


def test_the_setting_is_the_challenges(series, tmp_path):
    pytest.importorskip("highdicom")
    assert not Chaos().deidentify
    case = CaseFiles("case", "case", series.files, None, "CT")
    for deidentify in (False, True):
        chaos = Chaos((6, 5), formats="seg", deidentify=deidentify)
        folder = tmp_path / str(deidentify)
        [path] = chaos.export(folder, case, np.zeros((3, 6, 5), np.uint8), series.geometry)
        assert (b"Quelle" in path.read_bytes()) == (not deidentify)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(series, tmp_path, monkeypatch):
    path = tmp_path / "out" / "a.seg.dcm"
    written(series, path)
    before = path.read_bytes()

    def full(_):
        assert len(list(path.parent.glob(".*.tmp.seg.dcm"))) == 1  # what a stop removes
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="a.seg.dcm: cannot be written .*No space left"):
        written(series, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
