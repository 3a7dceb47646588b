"""timm's names of the networks that can be ported, and what each name says.

A name is a model and, after a dot, the tag of a training run: `tf_efficientnet_b0.ns_jft_in1k`.
What weights depend on besides their tensors' shapes, the padding convention and BatchNorm's eps, is
the model's: those with `tf_` were trained in TensorFlow.
"""

import dataclasses
import re
from typing import Any

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import efficientnet_table, encoders

# Padding and eps. TensorFlow-trained networks, ported by timm, keep their framework's ways.
TENSORFLOW, PYTORCH = ("same", 1e-3), ("symmetric", 1e-5)

# Architectures that timm has under both names, then those only with `tf_`; the rest only without.
_BOTH = re.compile(
    r"efficientnet_(b[0-8]|l2|lite[0-4]|e[sml]|cc_b0_[48]e|cc_b1_8e)|efficientnetv2_(s|m|l|xl)"
)
_ONLY_TF = re.compile(r"efficientnetv2_b[0-3]")
# Pruned from TensorFlow-trained networks, though their names do not say so.
_TENSORFLOW_ALL_THE_SAME = re.compile(r"efficientnet_b[123]_pruned")

# EfficientNets by name that are not here, and why.
LEFT_OUT = {
    r"gc_efficientnetv2_rw_t": "its gates are global context blocks, not squeeze-and-excitation",
    r"test_efficientnet(_\w+)?": "it is a fixture of timm's own tests",
}


@dataclasses.dataclass(frozen=True)
class Name:
    """What a timm name says.

    Attributes:
      timm: the name as given, "tf_efficientnet_b0.ns_jft_in1k".
      model: without the tag of the training run, "tf_efficientnet_b0".
      architecture: ours, "efficientnet_b0": the two families differ in no tensor.
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
      channels: of the five features, /2 to /32.
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


def models(architecture: str) -> tuple[str, ...]:
    """timm's names for an architecture, without tags: with `tf_` first."""
    tf = f"tf_{architecture}"
    if _BOTH.fullmatch(architecture):
        return (tf, architecture)
    return (tf,) if _ONLY_TF.fullmatch(architecture) else (architecture,)


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm has under a model's name."""
    tensorflow = model.startswith("tf_") or _TENSORFLOW_ALL_THE_SAME.fullmatch(model)
    return TENSORFLOW if tensorflow else PYTORCH


def parse_name(name: str) -> Name:
    """Reads a timm name, with or without tag.

    Raises:
      WeightsError: another family, saying why if it is left out, and listing the supported ones.
    """
    model, dot, tag = name.partition(".")
    architecture = model.removeprefix("tf_")
    if architecture in encoders.ENCODERS and model in models(architecture) and (tag or not dot):
        return Name(name, model, architecture, *convention(model))
    reason = left_out(model)
    if reason is None and architecture in encoders.ENCODERS and (tag or not dot):
        reason = f"timm knows it as {' and '.join(models(architecture))}"
    known = [models(a)[-1] if len(models(a)) == 1 else f"[tf_]{a}" for a in encoders.ENCODERS]
    raise WeightsError(
        f"{name!r}: not a supported timm name{f' ({reason})' if reason else ''}. Supported, with "
        f"any tag: {', '.join(known)}. For more of each: python -m weight_port list"
    )


def left_out(model: str) -> str | None:
    """Why an EfficientNet of timm's is not supported; None for all others."""
    return next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, model)), None)


def supported(*, ask_timm: bool = False) -> list[Row]:
    """Every architecture that can be ported, in the order of the table.

    Args:
      ask_timm: whether timm's list of pre-trained weights is read too, and their licences; timm
        must be installed. No network is used.

    Raises:
      WeightsError: timm is to be asked and is not installed.
    """
    rows = []
    for architecture, variant in efficientnet_table.VARIANTS.items():
        names = models(architecture)
        row = Row(
            architecture=architecture,
            models=names,
            paddings={name: convention(name)[0] for name in names},
            norm=encoders.norm(architecture),
            parameters=efficientnet_table.parameters(variant),
            resolution=efficientnet_table.network(variant).resolution,
            channels=tuple(feature.channels for feature in encoders.feature_info(architecture)),
        )
        rows.append(dataclasses.replace(row, **_pretrained(names)) if ask_timm else row)
    return rows


def _pretrained(names: tuple[str, ...]) -> dict[str, Any]:
    """What timm knows of pre-trained weights of these models."""
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
