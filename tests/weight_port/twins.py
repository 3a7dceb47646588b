"""The small ConvNeXt, DenseNet and MobileNets of `cut_families` in timm and torchvision."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdim_jax.models import mobilenetv3
from tests.cut_families import HARD, HEAD, MOBILE, MOBILE_2, RELU, ROWS
from weight_port.names import parse_name
from weight_port.recognise import recognise
from weight_port.source import Source

CLASSES = 10


def _timm_convnext():
    from timm.models.convnext import ConvNeXt

    row = ROWS["convnext_cut"][2]
    return ConvNeXt(num_classes=CLASSES, depths=row.blocks, dims=row.channels)


def _torchvision_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    row = ROWS["convnext_cut"][2]
    following = [*row.channels[1:], None]
    settings = zip(row.channels, following, row.blocks, strict=True)
    return ConvNeXt([CNBlockConfig(*setting) for setting in settings], num_classes=CLASSES)


def _densenet(library, **stem):
    row = ROWS["densenetcut"][2]  # timm has no other stem than twice the growth
    module = importlib.import_module(f"{library}.models.densenet")
    return module.DenseNet(row.growth, row.layers, num_classes=CLASSES, **stem)


def _timm_mobilenetv2():
    from timm.layers import get_act_layer
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    kinds = {1: "ds", 6: "ir"}
    definition = [[f"{kinds[e]}_r{r}_k3_s{s}_e{e}_c{c}"] for e, c, r, s in MOBILE_2]
    blocks, relu6 = decode_arch_def(definition), get_act_layer("relu6")
    return EfficientNet(blocks, num_classes=CLASSES, act_layer=relu6)


def _torchvision_mobilenetv2():
    from torchvision.models import MobileNetV2

    return MobileNetV2(CLASSES, inverted_residual_setting=[list(stage) for stage in MOBILE_2])


def _timm_mobilenet(padding, eps):
    from timm.layers import get_act_layer, get_norm_layer
    from timm.models import _efficientnet_builder as builder
    from timm.models.mobilenetv3 import MobileNetV3

    definition = [
        ["ds_r1_k3_s2_e1_c16_se0.25_nre"],
        ["ir_r1_k3_s2_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"],
        ["ir_r1_k5_s2_e4_c40_se0.25"],
        ["ir_r1_k5_s2_e3.6_c48_se0.25"],
        ["cn_r1_k1_s1_c288"],
    ]
    gates = {"gate_layer": "hard_sigmoid", "force_act_layer": get_act_layer("relu")}
    gates["rd_round_fn"] = builder.round_channels
    return MobileNetV3(
        builder.decode_arch_def(definition),
        num_classes=CLASSES,
        num_features=HEAD,
        pad_type=padding,
        act_layer=get_act_layer("hard_swish"),
        norm_layer=functools.partial(get_norm_layer("batchnorm2d"), eps=eps),
        se_layer=functools.partial(builder.SqueezeExcite, **gates),
    )


def _torchvision_mobilenet():
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    channels, settings = mobilenetv3.STEM, []
    for window, stride, wide, out, gated, act in (row for stage in MOBILE[:-1] for row in stage):
        act = {RELU: "RE", HARD: "HS"}[act]
        settings.append(
            InvertedResidualConfig(channels, window, wide, out, gated, act, stride, 1, 1.0)
        )
        channels = out
    return MobileNetV3(settings, HEAD, num_classes=CLASSES)


# (our name for it, the library whose names it has) -> the network.
TWINS = {
    ("convnext_cut", "timm"): _timm_convnext,
    ("convnext_cut", "torchvision"): _torchvision_convnext,
    ("densenetcut", "timm"): functools.partial(_densenet, "timm"),
    ("densenetcut", "torchvision"): functools.partial(
        _densenet, "torchvision", num_init_features=16
    ),
    ("mobilenetv2_cut", "timm"): _timm_mobilenetv2,
    ("mobilenetv2_cut", "torchvision"): _torchvision_mobilenetv2,
    ("mobilenetv3_cut", "timm"): functools.partial(_timm_mobilenet, "", 1e-5),
    ("tf_mobilenetv3_cut", "timm"): functools.partial(_timm_mobilenet, "same", 1e-3),
    ("mobilenetv3_cut", "torchvision"): _torchvision_mobilenet,
}


def randomise(model: Any) -> Any:
    """The network in eval mode, with random norms, biases, scales, and statistics that fit it."""
    import torch

    generator = np.random.default_rng(1)

    def draw(low, high, shape):
        return torch.tensor(generator.uniform(low, high, tuple(shape)), dtype=torch.float32)

    def settle(norm, inputs):
        x, n = inputs[0], inputs[0].shape[1]
        variance = x.var((0, 2, 3)).mean()
        norm.running_mean.copy_(x.mean((0, 2, 3)) + variance.sqrt() * draw(-0.3, 0.3, [n]))
        norm.running_var.copy_(variance * draw(0.5, 1.5, [n]))

    model = model.eval()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(("gamma", "layer_scale")):
                parameter.copy_(draw(0.1, 0.5, parameter.shape))
            elif parameter.ndim == 1:
                parameter.add_(draw(-0.3, 0.3, parameter.shape))
        model(torch.tensor(generator.normal(size=(1, 3, 96, 96)), dtype=torch.float32))
    for hook in hooks:
        hook.remove()
    return model


def source(name: str, state: Mapping[str, Any]) -> tuple[Source, str]:
    """A state dict as a source, and the library whose names it has."""
    arrays = {key: np.asarray(value) for key, value in state.items()}
    parsed = parse_name(name)
    found = recognise(arrays, parsed, file="x.pth")
    assert not found.others
    scheme = found.place.scheme
    padding, eps = scheme.convention(parsed.model)
    parsed = dataclasses.replace(parsed, padding=padding, eps=eps)
    origin = {"source": "file", "id": name, "url": None, "file": "x.pth", "sha256": "0" * 64}
    return Source(parsed, found.arrays, origin | {"licence": "unknown"}), scheme.name
