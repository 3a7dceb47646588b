"""Losses and training metrics, as sums and counts.

Every function returns a dict of name -> `(sum, count)`. A mean is `sum / count` taken at the very
end, so adding up micro-batches, steps or devices gives exactly the mean over all of them, whatever
their sizes or weights. All arithmetic is float32, whatever the dtype of the logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]

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


def soft_dice(probabilities: jax.Array, target: jax.Array) -> jax.Array:
    """Soft Dice loss per sample and region, over all voxels.

    `1 - 2 sum(p t) / (sum(p) + sum(t) + epsilon)`. Where the region is empty that expression is
    1 with gradient 0 for any prediction, so there the loss is the mean of `p` instead: also
    between 0 (nothing predicted) and 1 (everything predicted), and it pushes every voxel down.

    Args:
      probabilities: `(b, *spatial, k)` in [0, 1].
      target: `(b, *spatial, k)`, 0 or 1.

    Returns:
      `(b, k)` float32.
    """
    probabilities, target = probabilities.astype(jnp.float32), target.astype(jnp.float32)
    axes = tuple(range(1, probabilities.ndim - 1))
    true_sum = target.sum(axes)
    overlap = (probabilities * target).sum(axes)
    dice = 2 * overlap / (probabilities.sum(axes) + true_sum + EPSILON)
    return jnp.where(true_sum > 0, 1 - dice, probabilities.mean(axes))


def binary_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Binary cross-entropy per sample and region, mean over voxels, from logits.

    `max(x, 0) - x t + log(1 + exp(-|x|))`, which neither overflows nor loses small terms.

    Args:
      logits: `(b, *spatial, k)`, before the sigmoid.
      target: `(b, *spatial, k)`, 0 or 1.

    Returns:
      `(b, k)` float32.
    """
    logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
    axes = tuple(range(1, logits.ndim - 1))
    return (jax.nn.softplus(logits) - logits * target).mean(axes)


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


def hard_dice(
    logits: jax.Array,
    target: jax.Array,
    weights: jax.Array | None = None,
    *,
    threshold: float = 0.5,
) -> Sums:
    """Dice of the thresholded prediction, per region: a metric, without a gradient.

    A region empty in both truth and prediction scores 1, as in the BraTS evaluation.

    Args:
      logits: `(b, *spatial, k)`, before the sigmoid.
      target: `(b, *spatial, k)`, 0 or 1.
      weights: see `sample_weights`; a region of weight zero is not counted.
      threshold: on the probability.

    Returns:
      `dice`: `(sum (k,), count (k,))` over the samples.
    """
    axes = tuple(range(1, logits.ndim - 1))
    predicted = jax.nn.sigmoid(logits.astype(jnp.float32)) > threshold
    true = target > 0
    overlap = (predicted & true).sum(axes, dtype=jnp.float32)
    total = predicted.sum(axes, dtype=jnp.float32) + true.sum(axes, dtype=jnp.float32)
    dice = jnp.where(total > 0, 2 * overlap / jnp.maximum(total, 1), 1.0)
    counted = (sample_weights(weights, target) > 0).astype(jnp.float32)
    return {"dice": ((dice * counted).sum(0), counted.sum(0))}


# Each takes (logits, target, weights) and returns sums that hold at least `loss`.
LOSSES: dict[str, Callable[..., Sums]] = {"dice_bce": dice_bce}


def get(name: str) -> Callable[..., Sums]:
    """The loss of that name. Raises ValueError listing the known ones."""
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is unknown; known: {', '.join(sorted(LOSSES))}")
    return LOSSES[name]
