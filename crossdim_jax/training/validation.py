"""Validation during training: Dice per region over whole cases."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from crossdim_jax.runtime.distributed import say
from crossdim_jax.training.totals import Totals


class ValidationCase(Protocol):
    """Case to validate on: `data.cache.CachedCase` is one.

    Attributes:
      id: for messages.
      image: `(z, y, x, c)`.
      label: `(z, y, x)`, in the convention of the files.
      kind: see `CaseFiles`.
    """

    id: str
    image: np.ndarray
    label: np.ndarray
    kind: str


Predict = Callable[[Any, np.ndarray], np.ndarray]
Encode = Callable[[np.ndarray, str], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Validation:
    """Cases to validate on, a predictor, and when it is time.

    Attributes:
      cases: whole images and labels.
      predict: `(variables, image (z, y, x, c) float32) -> probabilities (z, y, x, k)`.
      encode: `label, kind -> targets (z, y, x, k), class weights (k,)`; weight 0 is not counted.
      from_dice: validation starts once an epoch's mean training Dice exceeds this; 0 for at once.
      every_epochs: and is then made every so many epochs, and at the end of the training.
      activation: of the probabilities, see `losses.hard_dice`; under a softmax the first class is
        the background and not scored.
      threshold: on the probabilities.
      absent_scores: True if a class that is empty in truth and prediction of a case scores 1 there,
        as in the BraTS evaluation; False if the case says nothing of it.
    """

    cases: Sequence[ValidationCase]
    predict: Predict
    encode: Encode
    from_dice: float = 0.85
    every_epochs: int = 1
    activation: str = "sigmoid"
    threshold: float = 0.5
    absent_scores: bool = True


def validate(variables: Any, validation: Validation) -> np.ndarray:
    """Mean Dice per class over whole cases, as `losses.hard_dice`.

    A class empty in both truth and prediction scores as `absent_scores` says. A class that is
    empty in the truth of every case is NaN: such scores say nothing of how well it is found, and
    would count in the mean over classes. If all are, there is nothing but these scores.
    """
    totals, present, first = Totals(), False, _first(validation)
    for case in validation.cases:
        try:
            overlap, size, there, weights = _counts(variables, validation, case)
        except Exception as error:
            error.add_note(f"while validating case {case.id}")
            raise
        dice = np.where(size > 0, 2 * overlap / np.maximum(size, 1), 1.0)
        counted = np.asarray(weights) > 0
        scored = counted if validation.absent_scores else counted & (size > 0)
        totals.add({"dice": ((dice * scored)[first:], scored[first:])})
        present = present | (there & counted)[first:]
    dice = totals.mean("dice")
    if absent := _absent(present, ~np.isnan(dice)):
        _say_absent(absent, len(present), len(validation.cases))
        return np.where(present, dice, np.nan)
    return dice


def _counts(
    variables: Any, validation: Validation, case: ValidationCase
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts of each class: voxels in both, the sum of each's, whether it is there, weight.

    A slice at a time: masks of a hundred classes take as much memory as the probabilities.
    """
    label = np.asarray(case.label)
    probabilities = np.asarray(validation.predict(variables, np.asarray(case.image, np.float32)))
    totals = []
    for z in range(len(label)):
        targets, weights = validation.encode(label[z : z + 1], case.kind)
        one = probabilities[z : z + 1]
        if validation.activation == "softmax":
            predicted = one.argmax(-1)[..., None] == np.arange(one.shape[-1])
        else:
            predicted = one > validation.threshold
        if predicted.shape != targets.shape or len(label) != len(probabilities):
            expected = (len(label), *targets.shape[1:])
            raise ValueError(f"predicted {probabilities.shape}, expected {expected}")
        axes, truth = tuple(range(targets.ndim - 1)), targets > 0
        predicted = predicted & (targets >= 0)  # -1: nobody annotated the voxel
        totals.append([(predicted & truth).sum(axes), predicted.sum(axes), truth.sum(axes)])
    overlap, ours, theirs = np.sum(totals, 0)
    return overlap, ours + theirs, theirs > 0, weights


def absent_classes(validation: Validation) -> tuple[int, ...]:
    """Classes that `validate` leaves out because no case has them; from the labels alone."""
    present, counted = False, False
    for case in validation.cases:
        targets, weights = validation.encode(np.asarray(case.label), case.kind)
        present = present | (targets > 0).any(tuple(range(targets.ndim - 1))) & (
            np.asarray(weights) > 0
        )
        counted = counted | (np.asarray(weights) > 0)
    first = _first(validation)
    return _absent(present[first:], counted[first:]) if validation.cases else ()


def _first(validation: Validation) -> int:
    """The first class that is scored."""
    return 1 if validation.activation == "softmax" else 0


def _absent(present: np.ndarray, counted: np.ndarray) -> tuple[int, ...]:
    """The classes that are counted and never present; none if no class is present."""
    return tuple(np.flatnonzero(counted & ~present).tolist()) if np.any(present) else ()


@functools.cache
def _say_absent(absent: tuple[int, ...], classes: int, cases: int) -> None:
    """Warns once of classes that no case has, however often it is validated."""
    say(
        f"warning: of the {classes} classes, {', '.join(f'number {k + 1}' for k in absent)} is in "
        f"none of the {cases} validation cases: it is left out of the score by which the best "
        "weights are chosen"
    )
