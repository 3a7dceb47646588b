"""ConvNeXt, DenseNet and MobileNets as encoders: sizes, features, depth options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops
from crossdim_jax.models import (
    convnext,
    densenet,
    efficientnet_table,
    encoders,
    mobilenetv2,
    mobilenetv3,
)
from crossdim_jax.models.convnext import ChannelNorm, ConvNeXt
from crossdim_jax.weights.paths import flatten
from tests import cut_families

LISTED = [
    name
    for name, row in encoders.ENCODERS.items()
    if row.family in ("convnext", "densenet", "mobilenetv2", "mobilenetv3")
]


@pytest.fixture(autouse=True)
def _cut():
    with cut_families.cut():
        yield


def abstract(name, shape, **options):
    """Sizes of the features, and path -> shape of the parameters."""
    model = encoders.build(name, ops_mode="lax", **options)
    features, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape))
    )
    return [f.shape[1:] for f in features], {
        path: leaf.shape for path, leaf in flatten(variables["params"]).items()
    }


def counted(name):
    for prefix, family in {"mobilenetv2_": mobilenetv2, "mobilenetv3_": mobilenetv3}.items():
        if name.startswith(prefix):
            return efficientnet_table.count(family.network(name.removeprefix(prefix)))
    variant = name.removeprefix("convnext_").removeprefix("densenet")
    return (convnext if name.startswith("convnext") else densenet).parameters(variant)


# torchvision's documentation: parameters of the classifier, less those of its head.
@pytest.mark.parametrize(
    ("name", "total", "head"),
    [
        ("convnext_tiny", 28_589_128, 2 * 768 + 769 * 1000),
        ("convnext_large", 197_767_336, 2 * 1536 + 1537 * 1000),
        ("densenet121", 7_978_856, 1025 * 1000),
        ("densenet161", 28_681_000, 2209 * 1000),
        ("densenet169", 14_149_480, 1665 * 1000),
        ("densenet201", 20_013_928, 1921 * 1000),
        ("mobilenetv2_100", 3_504_872, (320 + 2) * 1280 + 1281 * 1000),
        ("mobilenetv3_large_100", 5_483_032, 961 * 1280 + 1281 * 1000),
        ("mobilenetv3_small_100", 2_542_856, 577 * 1024 + 1025 * 1000),
    ],
)
def test_parameters_are_the_published_ones_less_the_head(name, total, head):
    assert counted(name) == total - head


@pytest.mark.parametrize(
    "name",
    [*cut_families.ROWS, *(pytest.param(name, marks=pytest.mark.slow) for name in LISTED)],
)
def test_counted_parameters_and_announced_features_are_those_there_are(name):
    info, counts = encoders.feature_info(name), counted(name)
    flat, parameters = abstract(name, (1, 64, 96, 3))
    assert flat == [(64 // f.reduction, 96 // f.reduction, f.channels) for f in info]
    assert sum(int(np.prod(shape)) for shape in parameters.values()) == counts
    deep, inflated = abstract(name, (1, 64, 64, 96, 3))
    assert deep == [(64 // i.reduction, *f) for i, f in zip(info, flat, strict=True)]
    assert inflated.keys() == parameters.keys()


@pytest.mark.parametrize(
    ("name", "strides", "reductions"),
    [
        ("convnext_cut", 1, (1, 1, 1, 1)),
        ("convnext_cut", (2, 1, 1, 2, 2), (2, 2, 4, 8)),
        ("densenetcut", 1, (1, 1, 1, 1, 1)),
        ("densenetcut", (1, 2, 1, 4, 1), (1, 2, 2, 8, 8)),
        ("mobilenetv3_large_100", (1, 1, 2, 1, 2, 1, 2, 1), (1, 2, 2, 4, 8)),
    ],
)
def test_depth_strides_and_kernels_are_those_asked_for(name, strides, reductions):
    assert encoders.depth_reductions(name, strides) == reductions
    # 12 slices, which the strides do not divide: the last part of a window counts.
    options = {"depth_strides": strides, "depth_kernels": 1}
    sizes, kernels = abstract(name, (1, 12, 64, 64, 2), **options)
    assert [size[0] for size in sizes] == [-(-12 // r) for r in reductions]
    assert [size[1] for size in sizes] == [64 // f.reduction for f in encoders.feature_info(name)]
    windows = [shape for path, shape in kernels.items() if path.endswith("kernel")]
    assert {shape[0] for shape in windows} == {1}


def test_factorised_kernels_are_the_depthwise_ones():
    _, kernels = abstract("convnext_cut", (1, 32, 32, 32, 2), factorised=True)
    filters = [shape for path, shape in kernels.items() if path.endswith("depth_kernel")]
    assert len(filters) == 5 and filters[0] == (7, 1, 1, 1, 8)
    with pytest.raises(ValueError, match="densenet121 has no depthwise kernels"):
        encoders.EncoderSpec("densenet121", factorised=True).check()


def test_channel_norm_is_of_each_voxel_alone(rng):
    x = jnp.asarray(rng.normal(3.0, 2.0, (1, 2, 3, 4, 6)), jnp.float32)
    variables = ChannelNorm(1e-6).init(jax.random.key(0), x)
    found = np.asarray(ChannelNorm(1e-6).apply(variables, x))
    np.testing.assert_allclose(found.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(-1), 1, rtol=1e-5)
    other = ChannelNorm(1e-6).apply(variables, x.at[0, 0, 0, 0].set(100.0))
    changed = (np.asarray(other) != found).any(-1)
    assert changed.sum() == 1


def test_branches_of_convnext_start_small_and_are_dropped_while_training_only(rng):
    model = ConvNeXt(variant="cut", drop_path_rate=0.5)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.make_jaxpr(
        lambda v, x, train: model.apply(v, x, train=train, rngs={"dropout": jax.random.key(0)}),
        static_argnums=2,
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    drawn = [
        str(program(variables, image, train)).count("name=_bernoulli") for train in (True, False)
    ]
    assert drawn[0] == 4 and drawn[1] == 0  # the first block is never dropped
    assert convnext.LAYER_SCALE == 1e-6


def test_means_are_of_the_windows_voxels(rng):
    x = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    found = ops.avg_pool(jnp.asarray(x), (2, 3), (2, 3), ((0, 0), (0, 0)))
    expected = x.reshape(2, 2, 2, 2, 3, 3).mean((2, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
