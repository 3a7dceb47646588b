"""timm's names of the networks that can be ported, and what each name says.

A name is a model and, after a dot, the tag of a training run: `tf_efficientnet_b0.ns_jft_in1k`.
What weights depend on besides their tensors' shapes, the padding convention and the norms' eps, is
the model's; `families` know it.
"""

import dataclasses
import re
from typing import Any

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from weight_port import families
from weight_port.families import FAMILIES


@dataclasses.dataclass(frozen=True)
class Name:
    """Content of a timm name.

    Attributes:
      timm: the name as given, "tf_efficientnet_b0.ns_jft_in1k".
      model: without the tag of the training run, "tf_efficientnet_b0".
      architecture: ours, "efficientnet_b0".
      padding: "same" or "symmetric".
      eps: of the norms.
    """

    timm: str
    model: str
    architecture: str
    padding: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Row:
    """An architecture that can be ported.

    Attributes:
      architecture: a key of `encoders.ENCODERS`.
      models: timm's names for it, without tags.
      paddings: model -> the padding convention of its weights.
      norm: the norm it is made for, "batch" or "group".
      parameters: of the 2D encoder with 3 input channels, without the classification head.
      resolution: pixels of the square images that the classifier is trained on.
      channels: of the features, finest first.
      tags: timm's full names of pre-trained weights; None where timm was not asked.
      licences: full name -> licence; None where timm was not asked.
    """

    architecture: str
    models: tuple[str, ...]
    paddings: dict[str, str]
    norm: str
    parameters: int
    resolution: int
    channels: tuple[int, ...]
    tags: tuple[str, ...] | None = None
    licences: dict[str, str] | None = None


def parse_name(name: str) -> Name:
    """Reads a timm name, with or without tag.

    Raises:
      WeightsError: another family, saying why if it is left out, and listing the supported ones.
    """
    model, dot, tag = name.partition(".")
    near = {a for f in FAMILIES.values() if (a := f.architecture_of(model)) in encoders.ENCODERS}
    for architecture in near if tag or not dot else ():
        family = families.of(architecture)
        if model in family.models(architecture):
            return Name(name, model, architecture, *family.convention(model))
    reason = left_out(model)
    if reason is None and near and (tag or not dot):
        known = (m for a in near for m in families.of(a).models(a))
        reason = f"timm knows it as {' and '.join(known)}"
    labels = [families.of(architecture).label(architecture) for architecture in encoders.ENCODERS]
    raise WeightsError(
        f"{name!r}: not a supported timm name{f' ({reason})' if reason else ''}. Supported, with "
        f"any tag: {', '.join(labels)}. For more of each: python -m weight_port list"
    )


def all_left_out() -> dict[str, str]:
    """timm's names that are not supported though their family is, as patterns, and why."""
    return {name: why for family in FAMILIES.values() for name, why in family.LEFT_OUT.items()}


def left_out(model: str) -> str | None:
    """Reason why a model of timm's is not supported though its family is; None for all others."""
    reasons = all_left_out().items()
    return next((why for pattern, why in reasons if re.fullmatch(pattern, model)), None)


def supported(*, ask_timm: bool = False) -> list[Row]:
    """Every architecture that can be ported, in the order of the table.

    Args:
      ask_timm: whether timm's list of pre-trained weights is read too, and their licences; timm
        must be installed. No network is used.

    Raises:
      WeightsError: timm is to be asked and is not installed.
    """
    rows = []
    for architecture in encoders.ENCODERS:
        family = families.of(architecture)
        names = family.models(architecture)
        parameters, resolution = family.size(architecture)
        row = Row(
            architecture=architecture,
            models=names,
            paddings={name: family.convention(name)[0] for name in names},
            norm=encoders.norm(architecture),
            parameters=parameters,
            resolution=resolution,
            channels=tuple(feature.channels for feature in encoders.feature_info(architecture)),
        )
        rows.append(dataclasses.replace(row, **_pretrained(names)) if ask_timm else row)
    return rows


def _pretrained(names: tuple[str, ...]) -> dict[str, Any]:
    """Pre-trained weights of these models, as far as timm knows them."""
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            "timm is not installed, and its list of weights needs it: "
            "pip install 'crossdim_jax[port]'"
        ) from error
    tags = tuple(tag for name in names for tag in timm.list_pretrained(name))
    configs = {tag: timm.models.get_pretrained_cfg(tag) for tag in tags}
    return {"tags": tags, "licences": {k: v.license or "unknown" for k, v in configs.items()}}
