"""DS-Net: golden parameter count, its twin in PyTorch, depths, images and slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.errors import ConfigError
from crossdim_jax.models import dsnet, layers
from crossdim_jax.weights.paths import flatten
from tests.models import b0
from tests.models.test_efficientnet import count
from tests.models.test_omnianet import check_twin


def abstract(shape, **kwargs):
    model = models.build("dsnet", ops="lax", **kwargs)
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape)))


def test_golden_parameter_count_of_the_released_code():
    logits, tree = abstract((2, 128, 32, 64, 4), variant="released")
    assert count(tree["params"]) == 7_668_118
    assert logits.shape == (2, 128, 32, 64, 3)


@pytest.mark.parametrize(
    "depth", [97, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (112, 128)), 144]
)
def test_every_depth_that_ends_at_three_is_taken(depth):
    logits, _ = abstract((1, depth, 32, 32, 2), out_channels=5)
    assert logits.shape == (1, depth, 32, 32, 5)


@pytest.mark.parametrize(
    ("variant", "size", "allowed"),
    [
        ("paper", (96, 64, 64), "97 to 144, found 96"),
        ("paper", (145, 64, 64), "97 to 144, found 145"),
        ("paper", (128, 64, 48), r"multiples of 32.*\(64, 64\)"),
        ("released", (127, 64, 64), "must be 128, found 127"),
        ("paper", (64, 64), "takes volumes"),
    ],
)
def test_other_sizes_are_refused_with_those_that_fit(variant, size, allowed):
    with pytest.raises(ValueError, match=allowed):
        models.build("dsnet", variant=variant).check_size(size)
    if len(size) == 3:
        with pytest.raises(ValueError, match=allowed):
            abstract((1, *size, 4), variant=variant)


@b0.SHORT_AND_WHOLE
@pytest.mark.parametrize(
    ("variant", "depth", "batch"),
    [("paper", 97, 1), pytest.param("released", 128, 2, marks=pytest.mark.slow)],
)
def test_equals_its_twin_in_pytorch_in_value_and_gradient(
    rng, monkeypatch, b0_length, variant, depth, batch
):
    """The released code takes one volume; nothing in it mixes several but batch norm."""
    pytest.importorskip("torch", reason="the twin is written in PyTorch (extra port)")
    from benchmarks import dsnet_peer

    short = b0_length == "short"  # and without gradient: each operation's has its own tests
    for module in (dsnet, dsnet_peer) if short else ():
        monkeypatch.setattr(module, "WIDTHS", (4, 8, 6, 10))
    model = models.build("dsnet", variant=variant, drop_path_rate=0.0, ops="fast")
    twin = dsnet_peer.DSNet(2, released=variant == "released")
    image = rng.normal(size=(batch, depth, 32, 32, 2)).astype(np.float32)
    check_twin(model, twin, image, rng, gradient=not short)


def test_a_channel_becomes_an_image_of_its_slices(rng):
    x = rng.normal(size=(2, 3, 5, 6, 4)).astype(np.float32)
    images = layers.fold_slices(jnp.asarray(x))
    assert images.shape == (8, 5, 6, 3)
    np.testing.assert_array_equal(images[4 * 1 + 2, ..., 0], x[1, 0, ..., 2])
    np.testing.assert_array_equal(layers.unfold_slices(images, 2), x)


def test_the_2d_network_is_omnia_net_without_full_resolution_block():
    _, tree = abstract((1, 128, 32, 32, 4))
    omnia = models.build("omnianet", stem_width=0, out_channels=3, ops="lax")
    alone = jax.eval_shape(omnia.init, jax.random.key(0), jnp.zeros((4, 32, 32, 3)))
    for collection in ("params", "batch_stats"):
        inside, expected = (
            {path: leaf.shape for path, leaf in flatten(t).items()}
            for t in (tree[collection]["net2d"], alone[collection])
        )
        assert inside == expected
    assert tree["params"]["net2d"]["encoder"]["conv_stem"]["kernel"].shape == (3, 3, 3, 32)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="paper, released"):
        models.build("dsnet", variant="draft")
    with pytest.raises(ConfigError, match="transposed, nearest"):
        models.build("dsnet", upsample="linear")
