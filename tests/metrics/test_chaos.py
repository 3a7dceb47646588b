"""CHAOS scores: the official rules. The challenge's own case is in tests/challenges."""

import math

import numpy as np
import pytest

from crossdim_jax import metrics
from crossdim_jax.metrics import MaskPair, chaos

score = metrics.PROFILES["chaos"].score


def ball(shape=(9, 12, 12), centre=(4, 6, 6), radius=3.0):
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def test_scores_are_lost_in_proportion_and_end_at_their_thresholds():
    at = {"dice": 0.8, "ravd": 5.0, "assd_mm": 15.0, "mssd_mm": 60.0}
    found = chaos.scores(at)
    assert found["score_dice"] == pytest.approx(80) and found["score_ravd"] == pytest.approx(0)
    assert found["score_assd"] == found["score_mssd"] == pytest.approx(0, abs=1e-9)
    beyond = chaos.scores({"dice": 0.799, "ravd": 5.1, "assd_mm": 15.1, "mssd_mm": 61.0})
    assert set(beyond.values()) == {0.0}
    best = chaos.scores({"dice": 1.0, "ravd": 0.0, "assd_mm": 0.0, "mssd_mm": 0.0})
    assert set(best.values()) == {100.0}
    half = chaos.scores({"dice": 0.9, "ravd": 2.5, "assd_mm": 7.5, "mssd_mm": 30.0})
    assert half["score"] == pytest.approx((90 + 50 + 50 + 50) / 4)


def test_voxels_on_the_edge_of_the_volume_are_not_border():
    """A liver cut off by the first and last slice has only its sides as border."""
    truth = np.zeros((4, 9, 9), bool)
    truth[:, 3:6, 3:6] = True
    prediction = np.zeros_like(truth)
    prediction[:, 3:6, 3:7] = True
    assd_mm, mssd_mm = chaos.surface_distances_mm(truth, prediction, (10.0, 1.0, 1.0))
    # Per slice: 8 border voxels against 10; the wider mask has only the middle one of the narrower
    # one's right side inside, and its own right side of three is one pixel off.
    near = [0] * 7 + [1], [0] * 7 + [1] * 3
    assert mssd_mm == 1.0
    assert assd_mm == pytest.approx(sum(sum(side) for side in near) / 18)


def test_a_smaller_prediction_does_not_wrap_around():
    truth, prediction = ball(radius=3.0), ball(radius=2.0)
    expected = 100 * (truth.sum() - prediction.sum()) / truth.sum()
    assert metrics.PROFILES["chaos"].definitions["ravd"]
    assert chaos.ravd(truth, prediction) == pytest.approx(float(expected))


def test_one_empty_mask_is_the_worst_and_two_are_not_scored():
    truth, empty = ball(), np.zeros((9, 12, 12), bool)
    diagonal = math.sqrt((9 * 2) ** 2 + 2 * 12**2)
    for pair in ((truth, empty), (empty, truth)):
        row = chaos.organ(MaskPair(*pair, (2.0, 1.0, 1.0)))
        far = chaos.organ(MaskPair(*pair, (20.0, 10.0, 10.0)))
        assert (row["dice"], row["ravd"]) == (0.0, 100.0)
        assert row["assd_mm"] == row["mssd_mm"] == pytest.approx(diagonal)
        assert far["score"] == far["score_assd"] == far["score_mssd"] == 0.0
    nothing = chaos.organ(MaskPair(empty, empty, (2.0, 1.0, 1.0)))
    assert list(nothing) == list(row) and all(map(math.isnan, nothing.values()))


def test_masks_that_fill_the_volume_have_no_border_and_no_crash():
    full = np.ones((3, 4, 4), bool)
    assert chaos.surface_distances_mm(full, full, (1.0, 1.0, 1.0)) == (0.0, 0.0)
    part = full.copy()
    part[0, 0, 0] = False
    apart = chaos.diagonal_mm(full.shape, (1.0, 1.0, 1.0))
    assert chaos.surface_distances_mm(full, part, (1.0, 1.0, 1.0)) == (apart, apart)


def test_rows_name_organs_and_leave_out_what_the_truth_does_not_know():
    truth = np.stack([ball(), np.zeros((9, 12, 12), bool)], -1)
    prediction = np.stack([ball(), ball()], -1)
    options = {"regions": ("liver", "spleen"), "spacing_mm": (2.0, 1.0, 1.0)}
    row = score(truth, prediction, **options, annotated=(True, False))
    assert row["dice_liver"] == 1.0 and row["score_liver"] == 100.0
    assert math.isnan(row["dice_spleen"]) and math.isnan(row["score_spleen"])
    assert score(truth, prediction, **options)["dice_spleen"] == 0.0
    mismatch = score(truth, prediction[:-1], **options, annotated=(True, False))
    assert mismatch["dice_liver"] == 0.0 and math.isnan(mismatch["dice_spleen"])
    assert mismatch["assd_mm_liver"] == pytest.approx(chaos.diagonal_mm((9, 12, 12), (2.0, 1, 1)))
    assert list(mismatch) == list(row)
