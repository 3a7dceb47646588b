"""Losses and training metrics, as sums and counts.

Every function returns a dict of name -> `(sum, count)`. A mean is `sum / count` taken at the very
end, so adding up micro-batches, steps or devices gives exactly the mean over all of them, whatever
their sizes or weights. All arithmetic is float32, whatever the dtype of the logits.

Targets are 0 or 1. Those of type int8 may be -1, in all classes of a voxel: it is not annotated,
and counts neither in a loss nor in a metric. The type decides, so that others cost nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crossdim_jax.errors import lookup

Sums = dict[str, tuple[jax.Array, jax.Array]]

# Logits to probabilities, classes on the last axis.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}

# Denominator only: it decides nothing unless truth and prediction are both empty.
EPSILON = 1e-5


def sample_weights(weights: jax.Array | None, target: jax.Array) -> jax.Array:
    """Weights of each sample's regions, `(b, k)` float32.

    Args:
      weights: None for ones, `(k,)` for all samples alike, or `(b, k)`. Zero leaves a region out,
        which is how an unlabelled structure is kept apart from an absent one.
      target: `(b, *spatial, k)`, for the shape.
    """
    shape = (target.shape[0], target.shape[-1])
    if weights is None:
        return jnp.ones(shape, jnp.float32)
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.broadcast_to(weights[None, :] if weights.ndim == 1 else weights, shape)


def annotated(target: jax.Array) -> jax.Array | None:
    """Mask of the voxels that are annotated, `(b, *spatial, k)` bool; None if all are."""
    return target >= 0 if target.dtype == jnp.int8 else None


def _mean(values: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    """Mean over annotated voxels; 0 where there is none."""
    if mask is None:
        return values.mean(axes)
    count = mask.sum(axes, dtype=jnp.float32)
    return jnp.where(mask, values, 0).sum(axes) / jnp.maximum(count, 1)


def soft_dice(probabilities: jax.Array, target: jax.Array) -> jax.Array:
    """Soft Dice loss per sample and region, over all annotated voxels.

    `1 - 2 sum(p t) / (sum(p) + sum(t) + epsilon)`. Where the region is empty that expression is
    1 with gradient 0 for any prediction, so there the loss is the mean of `p` instead: also
    between 0 (nothing predicted) and 1 (everything predicted), and it pushes every voxel down.

    Args:
      probabilities: `(b, *spatial, k)` in [0, 1].
      target: `(b, *spatial, k)`, 0 or 1.

    Returns:
      `(b, k)` float32.
    """
    return _soft_dice(
        probabilities.astype(jnp.float32), target.astype(jnp.float32), annotated(target)
    )


def _soft_dice(probabilities: jax.Array, target: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`soft_dice` of float32 arrays over the voxels of a mask."""
    if mask is not None:
        probabilities, target = jnp.where(mask, probabilities, 0), jnp.where(mask, target, 0)
    axes = tuple(range(1, probabilities.ndim - 1))
    true_sum = target.sum(axes)
    overlap = (probabilities * target).sum(axes)
    dice = 2 * overlap / (probabilities.sum(axes) + true_sum + EPSILON)
    return jnp.where(true_sum > 0, 1 - dice, _mean(probabilities, axes, mask))


def binary_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Binary cross-entropy per sample and region, mean over annotated voxels, from logits.

    `max(x, 0) - x t + log(1 + exp(-|x|))`, which neither overflows nor loses small terms.

    Args:
      logits: `(b, *spatial, k)`, before the sigmoid.
      target: `(b, *spatial, k)`, 0 or 1.

    Returns:
      `(b, k)` float32.
    """
    mask = annotated(target)
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    axes = tuple(range(1, logits.ndim - 1))
    return _mean(jax.nn.softplus(logits) - logits * target, axes, mask)


def dice_bce(logits: jax.Array, target: jax.Array, weights: jax.Array | None = None) -> Sums:
    """Sum of soft Dice loss and binary cross-entropy, averaged over regions and samples.

    Messaoudi et al. 2023, Sect. 3.1.3: "the sum of Dice and binary cross-entropy loss
    [...] on three class labels: TC, WT, and ET".

    Args:
      logits: `(b, *spatial, k)`, before the sigmoid, any float dtype.
      target: `(b, *spatial, k)`, 0 or 1, any dtype.
      weights: see `sample_weights`.

    Returns:
      `loss`, and its two terms `dice_loss` and `cross_entropy`; each `(sum, count)` of scalars.
    """
    logits = logits.astype(jnp.float32)
    weights = sample_weights(weights, target)
    dice = (weights * soft_dice(jax.nn.sigmoid(logits), target)).sum()
    entropy = (weights * binary_cross_entropy(logits, target)).sum()
    count = weights.sum()
    return {
        "loss": (dice + entropy, count),
        "dice_loss": (dice, count),
        "cross_entropy": (entropy, count),
    }


def _classes(values: jax.Array) -> jax.Array:
    """Index of each class, `(1..., k)`, to be compared with values `(..., k)`."""
    return jnp.arange(values.shape[-1]).reshape((1,) * (values.ndim - 1) + (-1,))


def _merged(values: jax.Array, unknown: jax.Array, add: Callable) -> jax.Array:
    """Values with the channels of unknown classes added to the first, the background, and 0.

    Args:
      values: `(b, *spatial, k)`.
      unknown: `(b, 1..., k)` bool, never the first.
      add: sums over the last axis, `(values, where) -> (b, *spatial)`.
    """
    first = _classes(values) == 0
    background = add(values, unknown | first)[..., None]
    return jnp.where(first, background, jnp.where(unknown, 0, values))


def dice_ce(logits: jax.Array, target: jax.Array, weights: jax.Array | None = None) -> Sums:
    """Soft Dice loss plus cross-entropy over disjoint classes, averaged over samples.

    Messaoudi et al. 2023, Eq. 5. As printed it swaps prediction and truth inside the logarithm;
    the ordinary cross-entropy is meant. Dice is the mean over all annotated classes, the background
    among them; cross-entropy the mean over voxels.

    A class of weight 0 is not annotated in that sample: its voxels lie unnamed in the background.
    So its probability is added to the background's before anything is compared. To predict it there
    costs nothing; to predict it where an annotated class lies costs what the background costs.

    Args:
      logits: `(b, *spatial, k)`, before the softmax, any float dtype; the background first.
      target: `(b, *spatial, k)`, one-hot, any dtype.
      weights: see `sample_weights`; that of the background is taken to be 1.

    Returns:
      `loss`, and its two terms `dice_loss` and `cross_entropy`; each `(sum, count)` of scalars.
    """
    spread = (logits.shape[0],) + (1,) * (logits.ndim - 2) + (-1,)
    known = (sample_weights(weights, target) > 0).at[:, 0].set(True)
    unknown = ~known.reshape(spread)
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    mask = annotated(target)
    target = target.astype(jnp.float32)
    if mask is not None:
        target = jnp.where(mask, target, 0)
    target = _merged(target, unknown, lambda x, where: jnp.sum(x, -1, where=where))
    logs = _merged(logs, unknown, lambda x, where: jax.nn.logsumexp(x, -1, where=where))
    probabilities = jnp.where(unknown, 0, jnp.exp(logs))
    dice = _soft_dice(probabilities, target, mask)
    dice = jnp.sum(jnp.where(known, dice, 0), -1) / known.sum(-1)
    # Where the truth is 0 the logarithm does not count, and a product with it could be NaN.
    entropy = -jnp.sum(jnp.where(target > 0, target * logs, 0), -1)
    voxels = None if mask is None else mask[..., 0]
    entropy = _mean(entropy, tuple(range(1, entropy.ndim)), voxels)
    count = jnp.asarray(logits.shape[0], jnp.float32)
    dice, entropy = dice.sum(), entropy.sum()
    return {
        "loss": (dice + entropy, count),
        "dice_loss": (dice, count),
        "cross_entropy": (entropy, count),
    }


def hard_dice(
    logits: jax.Array,
    target: jax.Array,
    weights: jax.Array | None = None,
    *,
    activation: str = "sigmoid",
    threshold: float = 0.5,
) -> Sums:
    """Dice of the thresholded prediction, per class: a metric, without a gradient.

    A class empty in both truth and prediction scores 1, as in the BraTS evaluation.

    Args:
      logits: `(b, *spatial, k)`, before the activation.
      target: `(b, *spatial, k)`, 0 or 1.
      weights: see `sample_weights`; a class of weight zero is not counted.
      activation: "sigmoid": a class is predicted above the threshold. "softmax": the most probable
        class is; the background, the first, is not scored.
      threshold: on the probability.

    Returns:
      `dice`: `(sum, count)` over the samples, each `(k,)`, under a softmax `(k - 1,)`.
    """
    axes = tuple(range(1, logits.ndim - 1))
    predicted, true = hard(logits, activation, threshold), target > 0
    if (mask := annotated(target)) is not None:
        predicted = predicted & mask
    overlap = (predicted & true).sum(axes, dtype=jnp.float32)
    total = predicted.sum(axes, dtype=jnp.float32) + true.sum(axes, dtype=jnp.float32)
    dice = jnp.where(total > 0, 2 * overlap / jnp.maximum(total, 1), 1.0)
    counted = (sample_weights(weights, target) > 0).astype(jnp.float32)
    total, count = (dice * counted).sum(0), counted.sum(0)
    first = 1 if activation == "softmax" else 0
    return {"dice": (total[first:], count[first:])}


def hard(scores: jax.Array, activation: str, threshold: float = 0.5) -> jax.Array:
    """Prediction `(..., k)` bool of logits `(..., k)`."""
    if activation == "softmax":
        return jnp.argmax(scores, -1)[..., None] == _classes(scores)
    return jax.nn.sigmoid(scores.astype(jnp.float32)) > threshold


class Loss(NamedTuple):
    """Row of `LOSSES`: the function, and the activation its logits are meant for.

    The function takes (logits, target, weights) and returns sums that hold at least `loss`.
    """

    function: Callable[..., Sums]
    activation: str


LOSSES = {"dice_bce": Loss(dice_bce, "sigmoid"), "dice_ce": Loss(dice_ce, "softmax")}


def get(name: str) -> Loss:
    """Looks up a loss by its name. Raises ConfigError listing the known ones."""
    return lookup("loss", name, LOSSES)
