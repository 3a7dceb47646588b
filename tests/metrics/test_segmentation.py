"""Scores of any segmentation: values by hand, and what is absent."""

import math

import numpy as np
import pytest

from crossdim_jax import metrics

SPACING_MM = (4.0, 1.0, 2.0)


def row(truth, prediction, tolerance="2"):
    profile = metrics.PROFILES[f"segmentation_{tolerance}mm"]
    return profile.score(
        truth[..., None], prediction[..., None], regions=("a",), spacing_mm=SPACING_MM
    )


def box(*starts, size=(2, 3, 4), shape=(8, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + n) for s, n in zip(starts, size, strict=True))] = True
    return mask


def test_equal_masks_are_perfect():
    found = row(box(2, 2, 2), box(2, 2, 2))
    assert (found["dice_a"], found["nsd_a"], found["hd95_mm_a"]) == (1, 1, 0)
    assert found["volume_ml_a"] == found["true_volume_ml_a"] == pytest.approx(24 * 8 / 1000)


@pytest.mark.parametrize(("shift_mm", "tolerance", "right"), [(1, "1", 1), (1, "0.5", 0)])
def test_a_plane_moved_by_less_than_the_tolerance_is_right(shift_mm, tolerance, right):
    """Planes of one voxel: every voxel is border and lies as far off as the plane was moved."""
    plane = box(0, 3, 0, size=(8, 1, 12))
    moved = box(0, 3 + shift_mm, 0, size=(8, 1, 12))
    found = row(plane, moved, tolerance)
    assert found["nsd_a"] == right and found["hd95_mm_a"] == shift_mm and found["dice_a"] == 0


def test_distances_are_in_mm_along_each_axis():
    for axis, (spacing, start) in enumerate(zip(SPACING_MM, (3, 3, 3), strict=True)):
        size = [1 if i == axis else n for i, n in enumerate((8, 12, 12))]
        starts = [start if i == axis else 0 for i in range(3)]
        moved = [start + 2 if i == axis else 0 for i in range(3)]
        assert row(box(*starts, size=size), box(*moved, size=size))["hd95_mm_a"] == 2 * spacing


def test_absent_in_one_is_worst_and_in_both_nothing():
    there, empty = box(2, 2, 2), np.zeros((8, 12, 12), bool)
    diagonal = math.hypot(8 * 4, 12 * 1, 12 * 2)
    for truth, prediction in ((there, empty), (empty, there)):
        found = row(truth, prediction)
        assert (found["dice_a"], found["nsd_a"]) == (0, 0)
        assert found["hd95_mm_a"] == pytest.approx(diagonal)
    nothing = row(empty, empty)
    assert np.isnan([nothing[f"{name}_a"] for name in ("dice", "nsd", "hd95_mm")]).all()
    assert nothing["volume_ml_a"] == 0


def test_a_profile_for_any_tolerance_and_no_other_name():
    name = "segmentation_0.5mm"
    assert "within 0.5 mm" in metrics.PROFILES[name].definitions["nsd"]
    assert metrics.PROFILES[name].name == name and name not in metrics.PROFILES
    for wrong in ("segmentation_mm", "segmentation_-1mm", "other"):
        with pytest.raises(KeyError):
            metrics.PROFILES[wrong]
