"""Depth options of a pre-trained encoder for voxels that are thicker than wide.

The rule is nnU-Net's (experiment_planners/network_topology.py, version 2.8.1), applied to an
encoder whose strides in the plane are given: depth is not reduced, and kernels have one tap along
it, until the plane has been reduced so far that voxels are about cubic.
"""

from typing import NamedTuple

from crossdim_jax.models import encoders

CUBIC = 2.0  # depth over plane below which voxels are about cubic
SMALLEST = 4  # slices that a depth stride leaves at least


class DepthOptions(NamedTuple):
    """Depth options, see `Strides.depths`; None where depth is as the plane is.

    Attributes:
      kernels: taps along depth of the stem and each stage.
      strides: along depth of the stem and each stage.
      reduction: of depth by the deepest feature.
    """

    kernels: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    reduction: int


def depth_options(encoder: str, thickness: float, slices: int) -> DepthOptions:
    """Depth options for a spacing and a size.

    Args:
      encoder: a key of `encoders.ENCODERS`.
      thickness: of a voxel along depth, in pixels of the plane.
      slices: of a patch.
    """
    kernels, strides = [], []
    pixel, left = 1.0, float(slices)  # of the plane, in those of the image; slices at this depth
    in_plane = encoders.row(encoder).strides()
    for kernel, stride in zip(in_plane.windows, in_plane.in_plane, strict=True):
        cubic = thickness < CUBIC * pixel
        kernels.append(kernel if cubic else 1)
        reduce = stride > 1 and cubic and left >= stride * SMALLEST
        strides.append(stride if reduce else 1)
        pixel *= stride
        if reduce:
            thickness, left = thickness * stride, left / stride
    options = (
        None if tuple(kernels) == in_plane.windows else tuple(kernels),
        None if tuple(strides) == in_plane.in_plane else tuple(strides),
    )
    return DepthOptions(*options, encoders.depth_reductions(encoder, options[1])[-1])
