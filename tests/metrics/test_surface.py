import re

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from crossdim_jax.metrics import surface


def blobs(rng, shape, edge=False):
    """Two overlapping random boxes with holes; at the volume's edge or inside it."""
    masks = []
    for _ in range(2):
        mask = np.zeros(shape, bool)
        box = tuple(
            slice(0 if edge else int(rng.integers(2, 4)), int(rng.integers(n // 2, n - 2)))
            for n in shape
        )
        mask[box] = rng.random(mask[box].shape) > 0.1
        masks.append(mask)
    return masks


def brute_border(mask, outside):
    padded = np.pad(mask, 1, constant_values=outside == "foreground")
    surrounded = np.ones_like(mask)
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            neighbour = np.roll(padded, shift, axis)
            surrounded &= neighbour[(slice(1, -1),) * mask.ndim]
    return mask & ~surrounded


def brute_distances(a, b, spacing, outside):
    points = [np.argwhere(brute_border(m, outside)) * np.asarray(spacing) for m in (a, b)]
    pairs = cdist(*points)
    return pairs.min(1), pairs.min(0)


@pytest.mark.parametrize("outside", ["background", "foreground"])
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("shape,spacing", [((14, 12, 13), (2.0, 0.7, 1.1)), ((23, 19), (1.0, 3.0))])
def test_cropped_equals_brute_force(rng, shape, spacing, edge, outside):
    a, b = blobs(rng, shape, edge)
    for scale in (spacing, None):
        ours = surface.border_distances(a, b, spacing=scale, outside=outside)
        theirs = brute_distances(a, b, scale or (1,) * len(shape), outside)
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12)


def test_border_of_a_cube_at_the_edge():
    mask = np.zeros((4, 5, 5), bool)
    mask[:3, 1:4, 1:4] = True
    assert surface.border(mask).sum() == 27 - 1
    assert surface.border(mask, "foreground").sum() == 27 - 2  # (0, 2, 2) is inside as well
    with pytest.raises(ValueError, match="known: background, foreground"):
        surface.border(mask, "mirror")


def test_summaries_by_hand():
    a, b = np.zeros((2, 1, 30), bool)
    a[0, 5:8], b[0, 5:18] = True, True  # rows of one pixel are all border
    distances = surface.border_distances(a, b)
    np.testing.assert_array_equal(distances[0], 0)
    np.testing.assert_array_equal(distances[1], [0, 0, 0, *range(1, 11)])
    assert surface.maximum(distances) == 10
    assert surface.mean_pooled(distances) == pytest.approx(55 / 16)
    assert surface.mean_of_means(distances) == pytest.approx(55 / 13 / 2)
    assert surface.percentile_pooled(distances, 95) == pytest.approx(9.25)  # not max(0, 9.4)
    millimetres = surface.border_distances(a, b, spacing=(1.0, 0.5))
    assert surface.maximum(millimetres) == 5


def test_empty_masks_are_the_callers_decision():
    empty, some = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    for pair in ((empty, some), (some, empty), (empty, empty)):
        with pytest.raises(ValueError, match="empty"):
            surface.border_distances(*pair)


def test_golden_liver_where_edge_voxels_are_no_border(shared_data):
    """CHAOS's ASSD and MSSD; with the outside as background the ASSD would be 0.712928."""

    def read(folder):
        def number(path):
            return [int(n) for n in re.findall(r"\d+", path.name)]

        paths = sorted(folder.glob("*.png"), key=number)
        return np.stack([np.asarray(Image.open(path)) > 0 for path in paths])

    truth = read(shared_data / "chaos/Train_Sets/CT/1/Ground")
    prediction = read(shared_data / "golden/chaos_ct")
    assert truth.shape == prediction.shape == (78, 512, 512)
    distances = surface.border_distances(
        truth, prediction, spacing=(2.0, 0.7265625, 0.7265625), outside="foreground"
    )
    assert surface.mean_pooled(distances) == pytest.approx(0.734131, abs=1e-6)
    assert surface.maximum(distances) == pytest.approx(14.0, abs=1e-6)
