"""Families of classifiers that can be ported, one file each.

A family's file has:

  LEFT_OUT                       timm's names (regular expressions) that are not supported -> why
  models(architecture)           timm's names for one of our encoders, without tags
  architecture_of(model)         our name for a model of timm's
  label(architecture)            all of timm's names for it in one word
  convention(model)              padding and eps that its weights were trained with
  SCHEMES                        naming schemes of its files, timm's first: see `formats/scheme.py`
  PACKAGES                       trained weights that packages bring, if there are any
  notes(paddings)                lines on the conventions, for a listing
  size(architecture)             parameters, and pixels of the classifier's images
  flax_path(torch_name)          path in a weight file, or None
  torch_name(path)               the inverse
  of_head(torch_name)            True for a tensor of the classification head
  to_flax_layout(array, path, shape), to_torch_layout(array, path)
  CLASSIFIER                     timm's name of the last layer
  feature_modules(network)       torch modules whose outputs are the features, the stem's first
  logits(architecture, arrays, feature, eps=)    what the classification head computes

Which family an encoder is of stands in its row of `encoders.ENCODERS`.
"""

from types import ModuleType

from crossdim_jax.models import encoders
from weight_port.families import (
    convnext,
    densenet,
    efficientnet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    vgg,
)

FAMILIES: dict[str, ModuleType] = {
    "efficientnet": efficientnet,
    "convnext": convnext,
    "densenet": densenet,
    "mobilenetv2": mobilenetv2,
    "mobilenetv3": mobilenetv3,
    "resnet": resnet,
    "regnet": regnet,
    **vgg.FAMILIES,
}


def of(architecture: str) -> ModuleType:
    """Family of one of our encoders; an unknown name is a ValueError."""
    return FAMILIES[encoders.row(architecture).family]
