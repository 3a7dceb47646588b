"""Depth options of a pre-trained encoder for voxels that are thicker than wide.

The rule is nnU-Net's (experiment_planners/network_topology.py, version 2.8.1), applied to an
encoder whose strides in the plane are given: depth is not reduced, and kernels have one tap along
it, until the plane has been reduced so far that voxels are about cubic.
"""

import functools
from typing import NamedTuple

from crossdim_jax.models import efficientnet_table, encoders

CUBIC = 2.0  # depth over plane below which voxels are about cubic
SMALLEST = 4  # slices that a depth stride leaves at least


class DepthOptions(NamedTuple):
    """Depth options, see `EfficientNet`; None where depth is as the plane is.

    Attributes:
      kernels: taps along depth of the stem and each stage.
      strides: along depth of the stem and each stage.
      reduction: of depth by the deepest feature.
    """

    kernels: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    reduction: int


@functools.cache
def in_plane(encoder: str) -> tuple[tuple[int, int], ...]:
    """(kernel size, stride) in the plane of the stem and of the first block of each stage."""
    stages = efficientnet_table.network(encoders.build(encoder).variant).stages
    return ((3, 2), *((blocks[0].window, blocks[0].stride) for blocks in stages))


def depth_options(encoder: str, thickness: float, slices: int) -> DepthOptions:
    """Depth options for a spacing and a size.

    Args:
      encoder: a key of `encoders.ENCODERS`.
      thickness: of a voxel along depth, in pixels of the plane.
      slices: of a patch.
    """
    kernels, strides = [], []
    pixel, left = 1.0, float(slices)  # of the plane, in those of the image; slices at this depth
    for kernel, stride in in_plane(encoder):
        cubic = thickness < CUBIC * pixel
        kernels.append(kernel if cubic else 1)
        reduce = stride > 1 and cubic and left >= stride * SMALLEST
        strides.append(stride if reduce else 1)
        pixel *= stride
        if reduce:
            thickness, left = thickness * stride, left / stride
    plane_kernels, plane_strides = zip(*in_plane(encoder), strict=True)
    options = (
        None if tuple(kernels) == plane_kernels else tuple(kernels),
        None if tuple(strides) == plane_strides else tuple(strides),
    )
    return DepthOptions(*options, encoders.depth_reductions(encoder, options[1])[-1])
