"""Shapes of the 2D encoders' tensors as PyTorch has them, by timm's names. Nothing is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.models import encoders
from crossdim_jax.weights.paths import ENCODER, flatten
from weight_port import families


@functools.cache
def torch_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """timm's name -> shape of every tensor of an encoder with 3 input channels, without the head.

    architecture: a key of `encoders.ENCODERS`.
    """
    family, norm = families.of(architecture), encoders.norm(architecture)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(encoders.build(architecture, norm=norm).init, jax.random.key(0), image)
    found = {}
    for path, leaf in flatten({c: {ENCODER: inner} for c, inner in tree.items()}).items():
        blank = np.broadcast_to(np.float32(0), leaf.shape)
        found[family.torch_name(path)] = family.to_torch_layout(blank, path).shape
    return found
