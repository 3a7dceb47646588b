"""The depth options that follow from a spacing."""

import pytest

from crossdim_jax import models
from crossdim_jax.models import anisotropy, encoders

B0 = "efficientnet_b0"


def test_cubic_voxels_are_treated_as_the_plane_is():
    assert anisotropy.depth_options(B0, 1.0, 128) == (None, None, 32)
    assert anisotropy.depth_options(B0, 1.99, 128).kernels is None


@pytest.mark.parametrize(
    "thickness,kernels,strides,reduction",
    [
        (2.0, (1, 3, 3, 5, 3, 5, 5, 3), (1, 1, 2, 2, 2, 1, 2, 1), 16),
        (6.3, (1, 1, 1, 5, 3, 5, 5, 3), (1, 1, 1, 2, 2, 1, 2, 1), 8),
        (15.0, (1, 1, 1, 1, 3, 5, 5, 3), (1, 1, 1, 1, 2, 1, 2, 1), 4),
        (100.0, (1,) * 8, (1,) * 8, 1),
    ],
)
def test_depth_is_left_alone_until_voxels_are_about_cubic(thickness, kernels, strides, reduction):
    assert anisotropy.depth_options(B0, thickness, 128) == (kernels, strides, reduction)


@pytest.mark.parametrize("slices,strides", [(36, (2, 1, 2, 2, 1, 1, 1, 1)), (7, (1,) * 8)])
def test_no_stride_leaves_less_than_four_slices(slices, strides):
    assert anisotropy.depth_options(B0, 1.0, slices).strides == strides


@pytest.mark.parametrize("encoder", [B0, "efficientnetv2_b0", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("thickness", [0.5, 3.0, 12.0])
def test_voxels_of_deep_maps_are_about_cubic_or_there_are_few_slices(encoder, thickness):
    options = anisotropy.depth_options(encoder, thickness, 64)
    models.build(
        "dxnet",
        encoder=encoder,
        depth_kernels=options.kernels,
        depth_strides=options.strides,
    )
    reductions = encoders.depth_reductions(encoder, options.strides)
    for feature, reduction in zip(encoders.feature_info(encoder), reductions, strict=True):
        ratio = thickness * reduction / feature.reduction
        thick, thin = ratio >= 2 * anisotropy.CUBIC, ratio < 1 / anisotropy.CUBIC
        assert not thick or reduction == 1
        assert (
            not thin
            or thickness < 0.5 * anisotropy.CUBIC
            or 64 / reduction < 2 * anisotropy.SMALLEST
        )
