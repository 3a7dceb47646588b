"""DenseNet as timm and torchvision have it: names, conventions, renaming, classification head.

`features.denseblock2.denselayer1.norm1.weight` is
`params/encoder/stages_1_denselayer1/norm1/scale`, `features.transition1.conv.weight` is
`params/encoder/stages_1_transition_conv/kernel`. The last norm, `features.norm5`, is the encoder's;
only the classifier is of the head.
"""

import re
from collections.abc import Mapping
from typing import Any

from crossdim_jax.models import densenet
from weight_port.families import common
from weight_port.formats.scheme import BIASED, KERNEL, NORM, PYTORCH, Scheme, tensors, timm
from weight_port.rename import KERNEL_LEAVES, NORM_LEAVES, Names

# --------------------------------------------------------------------------- names, conventions

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {r"densenet(264d|blur121d)": "its stem is three convolutions"}

models, architecture_of, label = common.models, common.architecture_of, common.label


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm has under a model's name."""
    return PYTORCH


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    return ["densenet: symmetric padding, eps 1e-5; features are normed and activated."]


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    return densenet.parameters(architecture.removeprefix("densenet")), densenet.RESOLUTION


# --------------------------------------------------------------------------- renaming, layouts

_LAYER = r"denseblock(\d)\.denselayer(\d+)\.(norm|conv)[12]"
_MODULE = re.compile(
    rf"features\.((norm)[05]|(conv)0|transition\d\.(norm|conv)|{_LAYER})|(classifier)"
)


def _leaves(module: str) -> dict[str, tuple[str, str]]:
    """The tensors of a module of timm's."""
    match = _MODULE.fullmatch(module)
    if match is None:
        return {}
    return NORM_LEAVES if "norm" in match.groups() else KERNEL_LEAVES


def _to_flax(module: str) -> str:
    """Blocks are stages, counted from 0; a transition is of the stage it leads to."""
    module = module.removeprefix("features.")
    module = re.sub(r"^denseblock(\d)\.", lambda match: f"stages_{int(match[1]) - 1}_", module)
    return re.sub(r"^transition(\d)\.", r"stages_\1_transition_", module)


def _to_torch(module: str) -> str:
    """The inverse of `_to_flax`."""
    if module == "classifier":
        return module
    module = re.sub(
        r"^stages_(\d)_(?=denselayer)", lambda match: f"denseblock{int(match[1]) + 1}.", module
    )
    return "features." + re.sub(r"^stages_(\d)_transition_", r"transition\1.", module)


_NAMES = Names(_leaves, _to_flax, _to_torch, head=re.compile("classifier"))
flax_path, torch_name, of_head = _NAMES.flax_path, _NAMES.torch_name, _NAMES.of_head
to_flax_layout, to_torch_layout = common.to_flax_layout, common.to_torch_layout


# --------------------------------------------------------------------------- other libraries


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors; torchvision has the same."""
    found = {"features.conv0": KERNEL, "features.norm0": NORM}
    counts = densenet.ROWS[architecture.removeprefix("densenet")].layers
    for s, count in enumerate(counts, 1):
        for layer in (f"features.denseblock{s}.denselayer{i + 1}" for i in range(count)):
            found |= {f"{layer}.norm{n}": NORM for n in (1, 2)}
            found |= {f"{layer}.conv{n}": KERNEL for n in (1, 2)}
        if s < len(counts):
            found |= {f"features.transition{s}.norm": NORM, f"features.transition{s}.conv": KERNEL}
    return found | {"features.norm5": NORM, "classifier": BIASED}


def _in_torchvisions_files(layer: str) -> str:
    """torchvision's files write `norm.1` for `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", layer)


SCHEMES = (
    timm(_layers, convention),
    Scheme(
        "torchvision",
        "the names in torchvision's files",
        lambda architecture: tensors(_layers(architecture), _in_torchvisions_files),
        convention,
    ),
)


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = "classifier"  # timm's name of the last layer


def feature_modules(network: Any) -> list[Any]:
    """timm's modules whose outputs are the features: norms with their activation."""
    body = network.features
    transitions = (body.transition1, body.transition2, body.transition3)
    return [body.norm0, *(transition.norm for transition in transitions), body.norm5]


logits = common.pooled_logits("classifier")
