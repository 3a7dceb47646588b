"""A small network of every family beside EfficientNet, by the families' tables.

ResNet, RegNet and VGG have one narrow block a stage, ours and timm's alike; ConvNeXt, DenseNet and
the MobileNets are encoders of their own, `ROWS`.
"""

import contextlib
import sys
from collections.abc import Iterator

import pytest

from crossdim_jax.models import (
    convnext,
    densenet,
    encoders,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    vgg,
)
from crossdim_jax.weights import recipe
from weight_port import families, forward, shapes
from weight_port.families import vgg as ported_vgg

PLANES, REPEATS, CHANNELS = (64, 16, 16, 24), (1, 1, 1, 1), (8, 8, 12, 12, 12)
REGNET = {"depth": 4, "w0": 8, "wa": 16.0, "wm": 1.7, "group_size": 8, "se_ratio": 0.25}
# Of timm's `create_model`.
TIMM = {
    "resnet18": {"layers": REPEATS, "channels": PLANES},
    "resnext50_32x4d": {"layers": REPEATS, "channels": PLANES, "base_width": 32, "cardinality": 2},
    "regnety_002": {},
    "vgg11": {"mlp_ratio": 1 / 64},
    "vgg11_bn": {"mlp_ratio": 1 / 64},
}
NAMES = (*TIMM, "resnet50", "resnet50_keras")

RELU, HARD = mobilenetv3.RELU, mobilenetv3.HARD
MOBILE = (  # one block of every kind, gated or not
    [(3, 2, 16, 16, True, RELU)],
    [(3, 2, 72, 24, False, RELU), (3, 1, 88, 24, False, RELU)],
    [(5, 2, 96, 40, True, HARD)],
    [(5, 2, 144, 48, True, HARD)],
    [(1, 1, 288, 288, False, HARD)],  # six times the channels, as torchvision has it
)
# MobileNetV2's stages; the second block of one of them is residual.
MOBILE_2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 1, 2),
    (6, 40, 1, 2),
    (6, 48, 1, 1),
    (6, 64, 1, 2),
)
# Encoders that there are not otherwise.
ROWS = {
    "convnext_cut": (convnext, "cut", convnext.Row((1, 2, 1, 1), (8, 16, 24, 32))),
    "densenetcut": (densenet, "cut", densenet.Row(16, 8, (2, 1, 2, 2))),
    "mobilenetv2_cut": (mobilenetv2, "cut", MOBILE_2),
    "mobilenetv3_cut": (mobilenetv3, "cut", MOBILE),
}
HEAD = 64


@contextlib.contextmanager
def cut() -> Iterator[None]:
    """Makes the encoders `NAMES` that small meanwhile, and adds `ROWS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "PLANES", PLANES)
        for name in filter(resnet.ROWS.__contains__, NAMES):
            patch.setitem(resnet.ROWS, name, resnet.ROWS[name]._replace(repeats=REPEATS))
        narrow = resnet.ROWS["resnext50_32x4d"]._replace(groups=2, base=32)
        patch.setitem(resnet.ROWS, "resnext50_32x4d", narrow)
        # Four blocks of 8, 24, 40 and 64 channels: four stages.
        patch.setitem(regnet.ROWS, "regnety_002", regnet.Row(16.0, 8, 1.7, 8, 4, gated=True))
        patch.setattr(vgg, "CHANNELS", CHANNELS)
        patch.setitem(vgg.ROWS, "vgg11", (1,) * 5)
        for name in ("vgg11", "vgg11_bn"):
            patch.setitem(families.FAMILIES, name, ported_vgg.Family(name))
        patch.setitem(mobilenetv3.HEADS, "cut", HEAD)
        for name, (family, variant, row) in ROWS.items():
            patch.setitem(family.ROWS, variant, row)
            patch.setitem(encoders.ENCODERS, name, family.encoder(variant))
        if "timm" in sys.modules:  # where a test compares with it
            from timm.models import regnet as timm_regnet
            from timm.models import vgg as timm_vgg

            small = timm_regnet.RegNetCfg(**REGNET)
            patch.setitem(timm_regnet.model_cfgs, "regnety_002", small)
            layers = [layer for channels in CHANNELS for layer in (channels, "M")]
            patch.setitem(timm_vgg.cfgs, "vgg11", layers)
        _forget()
        yield
    _forget()


def _forget():
    """What was made of the tables is made anew."""
    made = (regnet.network, recipe.target_shapes, forward._network, shapes.torch_shapes)
    for function in made:
        function.cache_clear()
