"""Patients of cases: by the rules of names below, or by a file of the data root.

A split never separates the scans of a patient, so this must be known. Names that say it in a way of
their own are not guessed: the file `patients.json` in the data root tells instead,
`{"case id": "patient", ...}`, for every case.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.storage import reading

FILE = "patients.json"
_LIMIT = 1 << 26  # bytes

# The patient's part of names whose rule is published, the whole name matching.
_RULES = tuple(
    re.compile(rule, re.IGNORECASE)
    for rule in (
        r"(BraTS-[A-Z]+(?:-RT)?-\d+)-\d+",  # 2023 and later: patient, visit
        r"(brats_[a-z0-9]+_pat\d+)_\d+",  # 2012 to 2016: brats_tcia_pat309_0120
        r"(sub-[A-Z0-9]+)(?:_[A-Z0-9]+-[A-Z0-9.]+)*(?:_[A-Z0-9]+)?",  # BIDS: sub-01_ses-2_run-1
        r"(UPENN-GBM-\d+)_\d+",  # _11 before, _21 after
        r"(UCSF-PDGM-\d+)(?:_FU\d+d)?(?:_nifti)?",
    )
)
# A name that ends so is likely one of several scans, but who knows.
_SCAN = re.compile(
    r"(.+?)[_.-]?(?:scan|visit|session|ses|timepoint|time|tp|followup|fu|baseline|week|day|month|"
    r"year|preop|postop|pre|post)[_.-]?\d*",
    re.IGNORECASE,
)


def of_case(case_id: str) -> str:
    """Patient by the rules of names; the case's own name where no rule fits."""
    found = next((match for rule in _RULES if (match := rule.fullmatch(case_id))), None)
    return found[1] if found else case_id


def assign(root: Path, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Cases with the patients that `patients.json` names, if the root has one.

    Raises DataError if the file cannot be read or does not name every case.
    """
    path = root / FILE
    if not path.exists():
        return list(cases)
    with reading.naming(path, 'an object {"case id": "patient", ...}'):
        named = json.loads(reading.read_bytes(path, limit=_LIMIT))
        if not isinstance(named, dict) or not all(
            isinstance(patient, str) and patient for patient in named.values()
        ):
            raise ValueError("some value is no name")
    if absent := [case.id for case in cases if case.id not in named]:
        raise DataError(
            f"{path}: names no patient for {len(absent)} of {len(cases)} cases "
            f"({', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}); name every case"
        )
    return [dataclasses.replace(case, patient=named[case.id]) for case in cases]


def suspects(cases: Sequence[CaseFiles]) -> list[list[str]]:
    """Groups of cases that count as different patients and are named like scans of one."""
    groups: dict[str, list[CaseFiles]] = {}
    for case in cases:
        if (found := _SCAN.fullmatch(case.id)) and case.patient == case.id:
            groups.setdefault(found[1], []).append(case)
    return [sorted(case.id for case in group) for group in groups.values() if len(group) > 1]
