"""RegNet as timm has it: names, conventions, renaming, classification head.

`s2.b1.conv2.conv.weight` is `params/encoder/stages_1_0/conv2/kernel`, `s2.b1.se.fc1.bias` is
`params/encoder/stages_1_0/se/conv_reduce/bias`. The head is the classifier alone, `head.fc`.
torchvision has the same networks under other names of tensors; where it rounds channels otherwise,
timm calls them `..._tv`.
"""

import re
from collections.abc import Mapping

from crossdim_jax.models import regnet, residual
from weight_port.families import common
from weight_port.formats.scheme import BIASED, KERNEL, NORM, PYTORCH, Scheme, tensors, timm
from weight_port.rename import Names

# --------------------------------------------------------------------------- names, conventions

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {
    r"regnetv_\w+": "its norms come before its convolutions",
    r"regnetz_\w+": "its blocks widen in between and end without activation",
    r"regnety_040_sgn": "it has group norm and SiLU",
}

models, architecture_of, label = common.models, common.architecture_of, common.label


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm has under a model's name."""
    return PYTORCH


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    return ["regnet: symmetric padding, eps 1e-5; ..._tv: channels as torchvision rounds them."]


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    net = regnet.network(architecture)
    return residual.parameters(net), net.resolution


# --------------------------------------------------------------------------- renaming, layouts

_LAYERS = {"stem.conv": "stem", "stem.bn": "stem_norm", "head.fc": "fc"}
_IN_BLOCK = {"downsample.conv": "shortcut", "downsample.bn": "shortcut_norm"}
_IN_BLOCK |= {"se.fc1": "se.conv_reduce", "se.fc2": "se.conv_expand"}
_IN_BLOCK |= {f"conv{n}.conv": f"conv{n}" for n in (1, 2, 3)}
_IN_BLOCK |= {f"conv{n}.bn": f"norm{n}" for n in (1, 2, 3)}

_to_flax, _to_torch = common.block_names(_LAYERS, _IN_BLOCK, "s{}.b{}", first=1)
_NAMES = Names(common.leaves(_to_flax), _to_flax, _to_torch, head=re.compile(r"head\.fc"))
flax_path, torch_name, of_head = _NAMES.flax_path, _NAMES.torch_name, _NAMES.of_head
to_flax_layout, to_torch_layout = common.to_flax_layout, common.to_torch_layout


# --------------------------------------------------------------------------- other libraries

# timm's layers of a block -> torchvision's.
_TORCHVISION = {"downsample.conv": "proj.0", "downsample.bn": "proj.1"}
_TORCHVISION |= {"se.fc1": "f.se.fc1", "se.fc2": "f.se.fc2"}
_TORCHVISION |= {f"conv{n}.conv": f"f.{x}.0" for n, x in enumerate("abc", 1)}
_TORCHVISION |= {f"conv{n}.bn": f"f.{x}.1" for n, x in enumerate("abc", 1)}


_ENDS = {"stem.conv": "stem.0", "stem.bn": "stem.1", "head.fc": "fc"}


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors."""
    found = {"stem.conv": KERNEL, "stem.bn": NORM}
    for s, blocks in enumerate(regnet.network(architecture).stages, 1):
        for i, block in enumerate(blocks, 1):
            there = {"downsample": block.shortcut, "se": block.reduced}
            for layer in _TORCHVISION:
                if there.get(layer.partition(".")[0], True):
                    kernel = BIASED if layer.startswith("se.") else KERNEL
                    found[f"s{s}.b{i}.{layer}"] = NORM if layer.endswith("bn") else kernel
    return found | {"head.fc": BIASED}


def _in_torchvision(layer: str) -> str:
    """torchvision's name for a layer of timm's."""
    if layer in _ENDS:
        return _ENDS[layer]
    s, i, inner = re.fullmatch(r"s(\d)\.b(\d+)\.(.+)", layer).groups()
    return f"trunk_output.block{s}.block{s}-{int(i) - 1}.{_TORCHVISION[inner]}"


def torchvision_names(architecture: str) -> dict[str, str]:
    """torchvision's name of each tensor, `trunk_output.block1.block1-0.f.a.0.weight` -> timm's."""
    return tensors(_layers(architecture), _in_torchvision)


SCHEMES = (
    timm(_layers, convention),
    Scheme("torchvision", "torchvision's names", torchvision_names, convention),
)


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = "head.fc"  # timm's name of the last layer
feature_modules, logits = common.feature_modules, common.logits
