import math

import numpy as np
import pytest

from crossdim_jax.metrics import overlap


def mask(*indices, size=10):
    out = np.zeros(size, bool)
    out[list(indices)] = True
    return out


def test_counts_by_hand():
    truth, prediction = mask(0, 1, 2, 3), mask(2, 3, 4)
    assert overlap.confusion(truth, prediction) == (2, 1, 2, 5)
    assert overlap.dice(truth, prediction) == pytest.approx(4 / 7)
    assert overlap.sensitivity(truth, prediction) == 0.5
    assert overlap.specificity(truth, prediction) == pytest.approx(5 / 6)


def test_empty_masks():
    empty, some, full = mask(), mask(1), np.ones(10, bool)
    assert overlap.dice(empty, empty) == 1
    assert overlap.dice(some, empty) == overlap.dice(empty, some) == 0
    assert overlap.sensitivity(empty, empty) == overlap.specificity(empty, empty) == 1
    assert overlap.sensitivity(some, empty) == 0
    assert math.isnan(overlap.sensitivity(empty, some))
    assert math.isnan(overlap.specificity(full, some))


def test_dice_is_symmetric_and_one_only_for_equal_masks(rng):
    a, b = rng.random((2, 6, 7, 8)) > 0.5
    assert overlap.dice(a, b) == overlap.dice(b, a) < 1
    assert overlap.dice(a, a) == 1


def test_refuses_labels_and_other_shapes():
    with pytest.raises(ValueError, match="boolean"):
        overlap.dice(np.ones(3, np.uint8), np.ones(3, bool))
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        overlap.dice(np.ones(3, bool), np.ones(1, bool))
