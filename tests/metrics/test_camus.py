import math

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from crossdim_jax import metrics

REGIONS = ("LVendo", "LVepi", "LA")
score = metrics.PROFILES["camus"].score


def regions(label):
    return np.stack([label == 1, np.isin(label, (1, 2)), label == 3], -1)


def blob(seed, shape=(1, 30, 24)):
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    row, column = rng.integers(4, 8, 2)
    label[:, row : row + 16, column : column + 12] = 2
    label[:, row + 2 : row + 13, column + 2 : column + 10] = 1
    label[:, row + 17 : row + 20, column : column + 9] = 3
    return label


@pytest.mark.parametrize(
    ("frame", "region", "dice", "mad_mm", "hd_mm"),
    [
        (0, "LVendo", 0.9313, 1.5156, 6.8345),
        (0, "LVepi", 0.9499, 1.7819, 5.9233),
        (12, "LVendo", 0.8490, 2.7885, 12.3022),
    ],
)
def test_golden(shared_data, frame, region, dice, mad_mm, hd_mm):
    truth, prediction = (
        np.asarray(nib.load(shared_data / f"echo/segmentation_{name}.nii.gz").dataobj).T
        for name in ("reference", "candidate1")
    )
    spacing = nib.load(shared_data / "echo/segmentation_reference.nii.gz").header.get_zooms()[::-1]
    one = slice(frame, frame + 1)
    row = score(regions(truth[one]), regions(prediction[one]), regions=REGIONS, spacing_mm=spacing)
    found = [row[f"{metric}_{region}"] for metric in ("dice", "mad_mm", "hd_mm")]
    assert found == pytest.approx([dice, mad_mm, hd_mm], abs=5e-5)
    assert math.isnan(row["hd_mm_LA"]) and row["dice_LA"] == 1  # no atrium in either


def test_distances_are_those_of_all_pairs_of_border_pixels_in_mm():
    a, b = blob(1), blob(3)
    spacing = (1.54, 0.154, 0.308)

    def border(mask):
        padded = np.pad(mask, 1)
        inner = (padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]) & mask
        return np.argwhere(mask & ~inner) * spacing[1:]

    truth, prediction = regions(a), regions(b)
    row, masd = (
        metrics.PROFILES[name].score(truth, prediction, regions=REGIONS, spacing_mm=spacing)
        for name in ("camus", "camus_masd")
    )
    for k, region in enumerate(REGIONS):
        pairs = cdist(border(truth[0, ..., k]), border(prediction[0, ..., k]))
        there, back = pairs.min(1), pairs.min(0)
        assert row[f"mad_mm_{region}"] == pytest.approx(np.mean([*there, *back]))
        assert masd[f"mad_mm_{region}"] == pytest.approx((there.mean() + back.mean()) / 2)
        assert row[f"hd_mm_{region}"] == pytest.approx(max(there.max(), back.max()))
    assert row["mad_mm_LVendo"] != masd["mad_mm_LVendo"]


def test_a_film_has_the_mean_of_its_frames_and_leaves_out_what_is_undefined():
    truth = np.concatenate([blob(1), blob(1), blob(2)])
    prediction = np.concatenate([blob(3), blob(3), blob(2)])
    truth[1] = 0
    film = score(regions(truth), regions(prediction), regions=REGIONS, spacing_mm=(1, 1, 1))
    frames = [
        score(
            regions(truth[i : i + 1]),
            regions(prediction[i : i + 1]),
            regions=REGIONS,
            spacing_mm=(1, 1, 1),
        )
        for i in range(3)
    ]
    assert math.isnan(frames[1]["hd_mm_LA"]) and frames[1]["dice_LA"] == 0
    assert film["hd_mm_LA"] == pytest.approx((frames[0]["hd_mm_LA"] + frames[2]["hd_mm_LA"]) / 2)
    assert film["dice_LA"] == pytest.approx(np.mean([f["dice_LA"] for f in frames]))


def test_a_mask_that_is_empty_has_no_distance():
    truth, nothing = regions(blob(1)), regions(np.zeros((1, 30, 24), np.uint8))
    for pair in ((truth, nothing), (nothing, truth)):
        row = score(*pair, regions=REGIONS, spacing_mm=(1, 1, 1))
        assert {row[f"dice_{r}"] for r in REGIONS} == {0}
        assert all(math.isnan(row[f"{m}_{r}"]) for m in ("mad_mm", "hd_mm") for r in REGIONS)
    summary = metrics.aggregate([row, score(truth, truth, regions=REGIONS, spacing_mm=(1, 1, 1))])
    assert summary["hd_mm_LA"]["n_nan"] == 1 and summary["hd_mm_LA"]["mean"] == 0


def test_a_mismatch_has_no_distance():
    truth = regions(blob(1))
    row = score(truth, truth[:, 1:], regions=REGIONS, spacing_mm=(1, 1, 1))
    assert row["dice_LA"] == 0 and math.isnan(row["hd_mm_LA"])
    with pytest.raises(ValueError, match="3 channels for regions"):
        score(truth, truth, regions=("LVendo",), spacing_mm=(1, 1, 1))
