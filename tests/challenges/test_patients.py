"""Whose scans the cases are."""

import json

import pytest

from crossdim_jax.challenges import patients
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles


def cases(*names):
    return [CaseFiles(name, patients.of_case(name), (), None) for name in names]


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00001-001", "BraTS-GLI-00001"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
        ("brats_tcia_pat309_0120", "brats_tcia_pat309"),
        ("sub-01", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-01_ses-20200101_acq-0.5mm_run-1", "sub-01"),
        ("sub-01_ses-pre_T1w", "sub-01"),
        ("UPENN-GBM-00001_21", "UPENN-GBM-00001"),
        ("UCSF-PDGM-0433_FU003d", "UCSF-PDGM-0433"),
        ("UCSF-PDGM-0433", "UCSF-PDGM-0433"),
        # Not known to be of one patient: each its own.
        ("BraTS2021_00001", "BraTS2021_00001"),
        ("Brats17_TCIA_606_1", "Brats17_TCIA_606_1"),
        ("patient01_scan2", "patient01_scan2"),
        ("pat_1", "pat_1"),
        ("subject-01_02", "subject-01_02"),
    ],
)
def test_the_patient_in_a_name(case, patient):
    assert patients.of_case(case) == patient


def test_a_file_of_the_data_root_tells_what_names_do_not(tmp_path):
    two = cases("scan_a", "scan_b")
    assert patients.assign(tmp_path, two) == two
    path = tmp_path / patients.FILE
    path.write_text(json.dumps({"scan_a": "p1", "scan_b": "p1", "scan_c": "p2"}))
    assert [case.patient for case in patients.assign(tmp_path, two)] == ["p1", "p1"]
    path.write_text(json.dumps({"scan_a": "p1", "scan-b": "p1"}))
    with pytest.raises(DataError, match="names no patient for 1 of 2 cases .scan_b.; name every"):
        patients.assign(tmp_path, two)


@pytest.mark.parametrize("text", ["{torn", "[]", '{"scan_a": 1}', '{"scan_a": ""}'])
def test_a_file_that_says_nothing_is_named(tmp_path, text):
    (tmp_path / patients.FILE).write_text(text)
    with pytest.raises(DataError, match="patients.json: .*case id"):
        patients.assign(tmp_path, cases("scan_a"))


def test_names_that_look_like_scans_of_one_patient_are_pointed_out():
    found = patients.suspects(
        cases("p1_scan1", "p1_scan2", "p2-baseline", "p2-followup", "p3_pre", "p4", "p5_1", "p5_2")
    )
    assert found == [["p1_scan1", "p1_scan2"], ["p2-baseline", "p2-followup"]]
    assert patients.suspects(cases("sub-01_ses-1", "sub-01_ses-2")) == []
