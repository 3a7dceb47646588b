"""Overlap of two binary masks: Dice, sensitivity, specificity.

Masks are boolean arrays of any rank and equal shape. Ratios without a denominator are NaN, except
where a rule says otherwise in the function's own text.
"""

import numpy as np


def confusion(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int, int, int]:
    """Counts of true positives, false positives, false negatives and true negatives.

    Raises ValueError if the shapes differ or a mask is not boolean.
    """
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} must be a boolean mask, found dtype {mask.dtype}")
    if truth.shape != prediction.shape:
        raise ValueError(f"masks differ in shape: {truth.shape} and {prediction.shape}")
    # Python integers: counts of unsigned or small types must not wrap when subtracted.
    true_positive = int(np.count_nonzero(truth & prediction))
    false_positive = int(np.count_nonzero(prediction)) - true_positive
    false_negative = int(np.count_nonzero(truth)) - true_positive
    true_negative = truth.size - true_positive - false_positive - false_negative
    return true_positive, false_positive, false_negative, true_negative


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Dice: 2 TP / (2 TP + FP + FN); 1 if both masks are empty, 0 if one is."""
    true_positive, false_positive, false_negative, _ = confusion(truth, prediction)
    denominator = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / denominator if denominator else 1.0


def sensitivity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Sensitivity: TP / (TP + FN); 1 if both masks are empty, NaN if only the truth is."""
    true_positive, false_positive, false_negative, _ = confusion(truth, prediction)
    if true_positive + false_negative:
        return true_positive / (true_positive + false_negative)
    return float("nan") if false_positive else 1.0


def specificity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Specificity: TN / (TN + FP); 1 if both masks are empty, NaN if the truth fills the volume."""
    _, false_positive, _, true_negative = confusion(truth, prediction)
    negatives = true_negative + false_positive
    return true_negative / negatives if negatives else float("nan")
