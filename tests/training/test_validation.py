"""Dice over whole cases. When the loop validates: test_loop.py."""

import numpy as np
import pytest

from crossdim_jax.training.validation import Validation, absent_classes, validate
from tests import toy


@pytest.fixture(scope="module")
def cases():
    return toy.make_cases()


def test_validation_dice_counts_voxels_and_leaves_unlabelled_regions_out(cases):
    def predict(variables, image):
        return np.stack([image[..., 0] > 0.5, image[..., 0] > 9], -1).astype(np.float32)

    expected = [
        2 * ((c.image[..., 0] > 0.5) & (c.label > 0)).sum()
        / ((c.image[..., 0] > 0.5).sum() + (c.label > 0).sum())
        for c in cases
    ]  # fmt: skip
    dice = validate(None, Validation(cases, predict, toy.encode))
    np.testing.assert_allclose(dice, [np.mean(expected), 0.0])

    # A class that no case has says nothing, whether it is predicted or not.
    first_only = [toy.Case(c.id, c.image, np.minimum(c.label, 1)) for c in cases]
    dice = validate(None, Validation(first_only, predict, toy.encode))
    assert dice[0] == np.mean(expected) and np.isnan(dice[1])
    assert absent_classes(Validation(first_only, predict, toy.encode)) == (1,)
    assert absent_classes(Validation(cases, predict, toy.encode)) == ()
    # But a case without a class that others have scores as in the official evaluation.
    mixed = [first_only[0], *cases[1:]]
    np.testing.assert_allclose(validate(None, Validation(mixed, predict, toy.encode))[1], 0.5)

    def half_labelled(label, kind):
        return toy.encode(label)[0], np.array([1.0, 0.0])

    dice = validate(None, Validation(cases, predict, half_labelled))
    assert dice[0] == np.mean(expected) and np.isnan(dice[1])
    assert absent_classes(Validation(cases, predict, half_labelled)) == ()
    # Without any class there is nothing but what is predicted by mistake.
    nothing = [toy.Case("empty", cases[0].image, np.zeros_like(cases[0].label))]
    assert validate(None, Validation(nothing, predict, toy.encode)).tolist() == [0.0, 1.0]
    assert absent_classes(Validation(nothing, predict, toy.encode)) == ()


def test_absence_in_both_may_say_nothing(cases):
    def predict(variables, image):
        return np.stack([image[..., 0] > 0.5, np.zeros_like(image[..., 0])], -1)

    mixed = [toy.Case("first", cases[0].image, np.minimum(cases[0].label, 1)), *cases[1:]]
    counted = validate(None, Validation(mixed, predict, toy.encode))
    left_out = validate(None, Validation(mixed, predict, toy.encode, absent_scores=False))
    assert counted[1] == 1 / len(mixed) and left_out[1] == 0
    assert counted[0] == left_out[0]


def test_what_is_predicted_where_nobody_annotated_does_not_count(cases):
    def predict(variables, image):
        return np.stack([image[..., 0] > 0.5, image[..., 0] > 9], -1)

    def partly(label, kind):
        target = toy.encode(label, kind)[0].astype(np.int8)
        target[:, ::2] = -1
        return target, np.ones(2)

    def part(case):
        return toy.Case(case.id, case.image[:, 1::2], case.label[:, 1::2])

    masked = validate(None, Validation(cases, predict, partly))
    left = validate(None, Validation([part(case) for case in cases], predict, toy.encode))
    np.testing.assert_allclose(masked, left)


def test_a_failing_validation_case_is_named(cases):
    def predict(variables, image):
        return np.zeros((1, 1, 1, 2))

    with pytest.raises(ValueError, match="predicted") as caught:
        validate(None, Validation(cases, predict, toy.encode))
    assert caught.value.__notes__ == ["while validating case val_0"]
