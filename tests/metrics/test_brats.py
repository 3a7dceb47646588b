import math

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import metrics
from crossdim_jax.metrics import brats

REGIONS = ("WT", "TC", "ET")
PROFILE = metrics.PROFILES["brats2022"]
OPTIONS = {"regions": REGIONS, "spacing_mm": (1.0, 1.0, 1.0)}


def regions(path):
    labels = np.asarray(nib.load(path).dataobj).T
    return np.stack([labels > 0, np.isin(labels, (1, 4)), labels == 4], -1)


@pytest.mark.parametrize(
    "name,expected",
    [
        ("isen-20", {"dice_WT": 0.913949, "hd95_WT": 5.477226}),
        (
            "scan-20",
            {"dice_WT": 0.910271, "hd95_WT": 5.099020, "dice_TC": 0.959045, "hd95_TC": 1.0},
        ),
        ("hnfnetv1-20", {"dice_WT": 0.978299, "hd95_WT": 2.236068}),
        ("sanet0-20", {"dice_ET": 0.989302, "hd95_ET": 1.0}),
    ],
)
def test_golden(shared_data, name, expected):
    (truth,) = (shared_data / "brats2021").glob("*/*_seg.nii.gz")
    prediction = shared_data / "golden/brats2021" / f"{name}.nii.gz"
    row = PROFILE.score(regions(truth), regions(prediction), **OPTIONS)
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, abs=1e-6), key


def test_columns_and_perfect_prediction(rng):
    truth = rng.random((6, 7, 8, 3)) > 0.5
    row = PROFILE.score(truth, truth, **OPTIONS)
    assert list(row) == [
        f"{m}_{r}" for m in ("dice", "hd95", "sensitivity", "specificity") for r in REGIONS
    ]
    assert all(type(value) is float for value in row.values())
    assert {v for k, v in row.items() if not k.startswith("hd95")} == {1.0}
    assert {v for k, v in row.items() if k.startswith("hd95")} == {0.0}


def test_empty_regions():
    truth = np.zeros((4, 4, 4, 3), bool)
    prediction = truth.copy()
    truth[1, 1, 1, 0] = prediction[2, 2, 2, 1] = True  # WT missed, TC invented, ET rightly absent
    row = PROFILE.score(truth, prediction, **OPTIONS)
    assert [row[f"dice_{r}"] for r in REGIONS] == [0, 0, 1]
    assert [row[f"hd95_{r}"] for r in REGIONS] == pytest.approx([373.128664, 373.128664, 0])
    assert row["sensitivity_WT"] == 0 and math.isnan(row["sensitivity_TC"])
    assert row["sensitivity_ET"] == row["specificity_ET"] == 1


def test_mismatched_shape_is_the_worst_row_and_never_an_error():
    truth = np.ones((4, 4, 4, 3), bool)
    row = PROFILE.score(truth, truth[:3], **OPTIONS)
    assert row == PROFILE.mismatch((4, 4, 4), **OPTIONS)
    assert row["dice_WT"] == 0 and row["hd95_ET"] == 374
    with pytest.raises(ValueError, match="3 channels"):
        PROFILE.score(truth, truth, **{**OPTIONS, "regions": ("WT",)})


def test_hd95_ignores_spacing_and_where_the_masks_lie(rng):
    a, b = np.zeros((2, 30, 30, 30), bool)
    a[5:12, 6:15, 3:20], b[6:12, 5:15, 3:24] = True, True
    here = brats.hd95(a, b)
    there = brats.hd95(np.roll(a, (18, 15, 6), (0, 1, 2)), np.roll(b, (18, 15, 6), (0, 1, 2)))
    assert here == there > 0
