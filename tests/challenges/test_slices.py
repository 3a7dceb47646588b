"""What all challenges of slices share: classes, regions, and the way to the network and back."""

import numpy as np
import pytest

from crossdim_jax.challenges.slices import SliceChallenge
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging.case import Case


class Hearts(SliceChallenge):
    """Cavity within wall; only the cavity is annotated in films."""

    name, modalities = "hearts", ("us",)
    classes, values = ("background", "cavity", "wall"), (0, 1, 7)
    regions, contents = ("inner", "outer"), ((1,), (1, 2))
    profile, aggregate = "brats2022", "clean"
    scan = load = write = layers = fingerprint = None

    def annotated(self, kind):
        return (True, True, kind != "film")


Hearts.__abstractmethods__ = frozenset()


@pytest.fixture
def label(rng):
    """Blocks of four pixels, so that halving loses nothing."""
    blocks = rng.choice([0, 1, 7], (2, 8, 12)).astype(np.uint8)
    return blocks.repeat(2, 1).repeat(2, 2)


def test_targets_are_one_hot_and_regions_may_overlap(label):
    challenge = Hearts((16, 24))
    targets, weights = challenge.encode(label)
    np.testing.assert_array_equal(targets.sum(-1), 1)
    np.testing.assert_array_equal(targets[..., 2], label == 7)
    assert weights.tolist() == [1, 1, 1] and challenge.encode(label, "film")[1].tolist() == [
        1,
        1,
        0,
    ]
    masks = challenge.masks(label)
    np.testing.assert_array_equal(masks[..., 0], label == 1)
    np.testing.assert_array_equal(masks[..., 1], label > 0)
    assert challenge.foreground == ("cavity", "wall")


@pytest.mark.parametrize("size", [(16, 24), (32, 48), (8, 12)])
def test_a_perfect_network_gives_the_label_back_on_its_own_grid(rng, label, size):
    challenge = Hearts(size)
    image = rng.normal(size=(*label.shape, 1)).astype(np.float32)
    prepared = challenge.prepare(Case("a", "a", image, label, (1.0, 1.0, 1.0), None))
    assert prepared.image.shape == (2, *size, 1)
    probabilities = challenge.encode(prepared.label)[0].astype(np.float32)
    found = challenge.finish(probabilities, prepared)
    assert found.dtype == np.uint8 and found.shape == label.shape
    wrong = (found != label).mean()
    # Enlarged and brought back, or of the same size, nothing is lost; halved, the corners are.
    assert wrong == 0 if size[0] >= 16 else wrong < 0.25


def test_what_cannot_be_a_prediction_is_refused(rng, label):
    challenge = Hearts((16, 24))
    image = rng.normal(size=(*label.shape, 1)).astype(np.float32)
    prepared = challenge.prepare(Case("a", "a", image, label, (1.0, 1.0, 1.0), None))
    with pytest.raises(ValueError, match="2 channels"):
        challenge.finish(np.zeros((2, 16, 24, 2), np.float32), prepared)
    with pytest.raises(DataError, match="NaN"):
        challenge.finish(np.full((2, 16, 24, 3), np.nan, np.float32), prepared)
    with pytest.raises(ConfigError, match="size is"):
        Hearts((16,))
