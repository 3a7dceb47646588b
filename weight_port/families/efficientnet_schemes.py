"""EfficientNet in the names of the libraries that have it, and their conventions.

Each scheme is a table: what the library calls the parts of a block, and how it counts blocks.
Sources: torchvision/models/efficientnet.py, efficientnet_pytorch/model.py,
monai/networks/nets/efficientnet.py, transformers/models/efficientnet/modeling_efficientnet.py,
keras/src/applications/efficientnet.py and efficientnet_v2.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from crossdim_jax.models import efficientnet_table
from crossdim_jax.models.efficientnet_table import Block
from weight_port.formats.scheme import (
    BIASED,
    KERNEL,
    NORM,
    PYTORCH,
    TENSORFLOW,
    Scheme,
    by_class_in_keras,
    in_keras,
)

# --------------------------------------------------------------------------- the parts of a network


class Part(NamedTuple):
    """A layer.

    Attributes:
      role: what it is, as tables below call it.
      timm: timm's name.
      place: what a table's names may speak of: stage, stage1 (from 1), i (in the stage), letter (of
        i), flat and flat1 (in the network), n and n1 (number of the part in the block), last (the
        head's number).
    """

    role: str
    timm: str
    place: Mapping[str, int | str]


# Kind of a block -> its parts in order: role, and timm's names of the convolution and its norm.
_PARTS = {
    "plain": (("project", "conv", "bn1"),),
    "separable": (("depthwise", "conv_dw", "bn1"), ("gate",), ("project", "conv_pw", "bn2")),
    "inverted": (
        ("expand", "conv_pw", "bn1"),
        ("depthwise", "conv_dw", "bn2"),
        ("gate",),
        ("project", "conv_pwl", "bn3"),
    ),
    "fused": (("expand", "conv_exp", "bn1"), ("gate",), ("project", "conv_pwl", "bn2")),
}


def parts(architecture: str) -> Iterator[Part]:
    """Yields every layer in order, the stem first and the classifier last."""
    stages = efficientnet_table.network(efficientnet_table.VARIANTS[architecture]).stages
    yield from body(stages)
    yield from head(len(stages) + 1)


def head(last: int) -> Iterator[Part]:
    """Yields the layers of the classification head in order; last: its number."""
    for role, name in (("head", "conv_head"), ("head_norm", "bn2"), ("classifier", "classifier")):
        yield Part(role, name, {"last": last})


def body(stages: Sequence[Sequence[Block]]) -> Iterator[Part]:
    """Yields every layer of a network's body in order, the stem first."""
    yield Part("stem", "conv_stem", {})
    yield Part("stem_norm", "bn1", {})
    flat = 0
    for stage, blocks in enumerate(stages):
        for i, block in enumerate(blocks):
            place = {"stage": stage, "stage1": stage + 1, "i": i, "flat": flat, "flat1": flat + 1}
            yield from _of_block(block, place | {"letter": chr(ord("a") + i)})
            flat += 1


def _of_block(block: Block, place: Mapping[str, int | str]) -> Iterator[Part]:
    beginning = f"blocks.{place['stage']}.{place['i']}"
    present = (part for part in _PARTS[block.kind] if part[0] != "gate" or block.reduced)
    for n, (role, *names) in enumerate(present):
        roles = ("reduce", "widen") if role == "gate" else (role, f"{role}_norm")
        for each, name in zip(roles, names or ("se.conv_reduce", "se.conv_expand"), strict=True):
            yield Part(each, f"{beginning}.{name}", {**place, "n": n, "n1": n + 1})


def _leaves(role: str) -> tuple[str, ...]:
    """timm's names of a layer's tensors."""
    if role.endswith("_norm"):
        return NORM
    return BIASED if role in ("reduce", "widen", "classifier") else KERNEL


def layers(parts: Iterable[Part]) -> dict[str, tuple[str, ...]]:
    """timm's name of each part -> its tensors."""
    return {part.timm: _leaves(part.role) for part in parts}


# --------------------------------------------------------------------------- tables

IN_BLOCK = ("expand", "depthwise", "reduce", "widen", "project")
Table = Mapping[str, str]

LUKEMELAS: Table = {
    **{"stem": "_conv_stem", "stem_norm": "_bn0", "block": "_blocks.{flat}."},
    **{"expand": "_expand_conv", "expand_norm": "_bn0"},
    **{"depthwise": "_depthwise_conv", "depthwise_norm": "_bn1"},
    **{"reduce": "_se_reduce", "widen": "_se_expand"},
    **{"project": "_project_conv", "project_norm": "_bn2"},
    **{"head": "_conv_head", "head_norm": "_bn1", "classifier": "_fc"},
}
MONAI: Table = {**LUKEMELAS, "block": "_blocks.{stage}.{flat}."}
TORCHVISION: Table = {
    **{"stem": "features.0.0", "stem_norm": "features.0.1"},
    **{"block": "features.{stage1}.{i}.block.", "reduce": "{n}.fc1", "widen": "{n}.fc2"},
    **{role: "{n}.0" for role in ("expand", "depthwise", "project")},
    **{f"{role}_norm": "{n}.1" for role in ("expand", "depthwise", "project")},
    **{"head": "features.{last}.0", "head_norm": "features.{last}.1"},
    "classifier": "classifier.1",
}
HUGGING_FACE: Table = {
    **{"stem": "embeddings.convolution", "stem_norm": "embeddings.batchnorm"},
    **{"block": "encoder.blocks.{flat}."},
    **{"expand": "expansion.expand_conv", "expand_norm": "expansion.expand_bn"},
    "depthwise": "depthwise_conv.depthwise_conv",
    "depthwise_norm": "depthwise_conv.depthwise_norm",
    **{"reduce": "squeeze_excite.reduce", "widen": "squeeze_excite.expand"},
    **{"project": "projection.project_conv", "project_norm": "projection.project_bn"},
    **{"head": "encoder.top_conv", "head_norm": "encoder.top_bn", "classifier": "classifier"},
}
KERAS: Table = {
    **{"stem": "stem_conv", "stem_norm": "stem_bn", "block": "block{stage1}{letter}_"},
    **{"expand": "expand_conv", "expand_norm": "expand_bn"},
    **{"depthwise": "dwconv", "depthwise_norm": "bn"},
    **{"reduce": "se_reduce", "widen": "se_expand"},
    **{"project": "project_conv", "project_norm": "project_bn"},
    **{"head": "top_conv", "head_norm": "top_bn", "classifier": "predictions"},
}


def by_table(table: Table, parts: Iterable[Part], *, keras: bool = False) -> dict[str, str]:
    """A library's name of each tensor -> timm's."""
    found = {}
    for part in parts:
        inside = part.role.removesuffix("_norm") in IN_BLOCK
        layer = (table["block"] if inside else "") + table[part.role]
        leaves = _leaves(part.role)
        for leaf in leaves:
            theirs = in_keras(leaf, leaves) if keras else leaf
            found[f"{layer.format(**part.place)}.{theirs}"] = f"{part.timm}.{leaf}"
    return found


def _keras(architecture: str) -> dict[str, str]:
    second = architecture.startswith("efficientnetv2")
    table = KERAS | ({"depthwise": "dwconv2"} if second else {})
    return by_table(table, parts(architecture), keras=True)


def _keras_numbers(architecture: str) -> dict[str, str]:
    """Names of Keras 3's `.weights.h5` -> timm's."""
    kinds = {"depthwise": "depthwise_conv2d", "classifier": "dense"}

    def kind(role: str) -> str:
        return "batch_normalization" if role.endswith("_norm") else kinds.get(role, "conv2d")

    return by_class_in_keras(
        (kind(part.role), part.timm, _leaves(part.role)) for part in parts(architecture)
    )


def _from_keras(name: str, array: np.ndarray) -> np.ndarray:
    """Keras' layout -> PyTorch's; a depthwise kernel is (k, k, C, 1) there, others (k, k, I, O)."""
    if array.ndim == 4:
        return array.transpose((2, 3, 0, 1) if ".conv_dw." in name else (3, 2, 0, 1))
    return array.T if array.ndim == 2 else array


# --------------------------------------------------------------------------- conventions

# torchvision pads symmetrically whatever was trained how: B5 to B7 and V2-L are TensorFlow's.
TORCHVISION_OTHERS = ("symmetric", 1e-3)


def _of_tensorflow(model: str) -> tuple[str, float]:
    return TENSORFLOW


def _of_torchvision(model: str) -> tuple[str, float]:
    small = model.removeprefix("tf_") in [f"efficientnet_b{n}" for n in range(5)]
    return PYTORCH if small else TORCHVISION_OTHERS


def _named(table: Table):
    return lambda architecture: by_table(table, parts(architecture))


LIBRARIES = (
    Scheme(
        "efficientnet-pytorch",
        "EfficientNet-PyTorch's names",
        _named(LUKEMELAS),
        _of_tensorflow,
    ),
    Scheme("monai", "MONAI's names", _named(MONAI), _of_tensorflow),
    Scheme(
        "torchvision",
        "torchvision's names",
        _named(TORCHVISION),
        _of_torchvision,
        children=("features", "avgpool", "classifier"),
    ),
    Scheme("huggingface", "Hugging Face's names", _named(HUGGING_FACE), _of_tensorflow),
    Scheme(
        "keras",
        "Keras' names",
        _keras,
        _of_tensorflow,
        to_torch=_from_keras,
        own=r"(stem|block\d\w*|top)_",
    ),
    Scheme(
        "keras-numbers",
        "Keras' numbers of layers",
        _keras_numbers,
        _of_tensorflow,
        to_torch=_from_keras,
        own=r"(depthwise_)?conv2d|batch_normalization",
    ),
)
