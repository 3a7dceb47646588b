"""Memory that a network needs for its gradient, counted without compiling it.

What the forward pass keeps for the backward pass is read off a trace. XLA's temporaries at their
peak come to more than that, since there must be room to work (`python -m benchmarks.step_memory`).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crossdim_jax.models import initial

# Temporaries at their peak over what is counted. Measured of DX-Net, compiled for CPU: 1.22 (a
# patch of 96^3), 1.28 (16 x 128 x 128, thick slices), 1.32 (64^3), 1.49 (two of 40 x 64 x 64).
MARGIN = 1.5
LOSS = 16  # bytes a voxel and class: logits, their gradient, and what the loss makes of them
COPIES = 8  # of the parameters: themselves, moments and slow weights, gradients, what comes out


class Footprint(NamedTuple):
    """Memory of a training step.

    Attributes:
      parameters: their number.
      bytes_per_voxel: of a batch: kept for the gradient, the voxel itself, and for the loss.
    """

    parameters: int
    bytes_per_voxel: float

    def step_bytes(self, voxels: float) -> float:
        """Bytes of a training step at its peak, for a batch of so many voxels."""
        return COPIES * 4 * self.parameters + MARGIN * self.bytes_per_voxel * voxels


def footprint(model: Any, spatial: Sequence[int], channels: int, classes: int) -> Footprint:
    """Traces a forward pass at one size; what is kept grows with the voxels.

    Args:
      model: a network, see `models.build`.
      spatial: (z, y, x) or (y, x) that it takes.
      channels, classes: of the image and of the target.
    """
    image = jax.ShapeDtypeStruct((1, *spatial, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: initial.variables(model, 0, x.shape), image)
    params = variables.pop("params")

    def kept(params, others, image):
        def logits(params):
            return model.apply(
                {"params": params, **others},
                image,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["moments"],
            )[0]

        return jax.vjp(logits, params)[1]

    pull = jax.eval_shape(kept, params, variables, image)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))
    batch = 4 * channels + classes * (1 + LOSS)
    return Footprint(parameters, max(held - 4 * parameters, 0) / math.prod(spatial) + batch)
