"""Runs a weight file's encoder, and timm's network, on a small input: what certificates compare."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.paths import ENCODER, is_head, unflatten
from weight_port import families
from weight_port.source import Source

# Pixels and slices: the coarsest feature is 4 x 4, enough for a norm of its own statistics.
PLANE, DEPTH, SEED = 128, 16, 0
TOLERANCE = 1e-4  # relative error in float32 up to which features are called equal
# Some features amplify whatever rounding left of those before them. Rounding is allowed as much as
# a change of the input by this fraction makes of it, but no more than equality can bear.
NUDGE, LOOSEST = 1e-5, 0.1
NOT_RUN = "not run"

# The fields of a record that are the encoder's attributes, and what a record that does not name
# them means; those that only 3D encoders have come second.
ATTRIBUTES = {"norm": "batch", "padding": "same", "eps": 1e-3}
DEEP_ATTRIBUTES = {"depth_kernels": None, "factorised": False}


def attributes(record: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The encoder's attributes as a weight file's record names them, and others that are given."""
    deep = DEEP_ATTRIBUTES if record.get("ndim") == 3 else {}
    found = {field: record.get(field, ATTRIBUTES[field]) for field in ATTRIBUTES}
    # Only what departs from the default, so that an encoder needs no attribute it has no use for.
    found |= {field: record[field] for field in deep if record.get(field)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in (found | others).items()}


@functools.lru_cache(maxsize=16)
def _network(architecture: str, settings: tuple[tuple[str, Any], ...]) -> Callable:
    encoder = encoders.build(architecture, **dict(settings))
    # Unoptimised: compiling takes longer than the few passes that follow.
    return jax.jit(encoder.apply, compiler_options={"xla_backend_optimization_level": 0})


def features(
    architecture: str, arrays: Mapping[str, np.ndarray], image: np.ndarray, **settings: Any
) -> list[np.ndarray]:
    """The encoder's features, finest first, in evaluation mode and full float32.

    Networks are compiled once for every set of attributes and input shape.

    Args:
      architecture: a key of `encoders.ENCODERS`.
      arrays: its tensors by path, as weight files hold them; those of a head are left out.
      image: (b, *spatial, c) float32.
      **settings: the encoder's attributes, see `attributes`.
    """
    tree = unflatten({k: v for k, v in arrays.items() if not is_head(k)})
    variables = {collection: inner[ENCODER] for collection, inner in tree.items()}
    apply = _network(architecture, tuple(sorted(settings.items())))
    with jax.default_matmul_precision("highest"):
        return [np.asarray(feature, np.float32) for feature in apply(variables, image)]


def reference(origin: Source) -> str:
    """Name of timm's network to compare a source with.

    Its own, or where a library's names or a flag gave other conventions than the name's, that of
    the same architecture which has the source's padding.

    Raises:
      WeightsError: timm has the architecture with the other padding only.
    """
    if not (origin.origin.get("scheme") or origin.origin.get("asked")):
        return origin.name.model
    family = families.of(origin.name.architecture)
    for model in (origin.name.model, *family.models(origin.name.architecture)):
        if family.convention(model)[0] == origin.name.padding:
            return model
    raise WeightsError(f"timm has no {origin.name.architecture} with {origin.name.padding} padding")


def timm_outputs(origin: Source, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray | None]:
    """timm's network with the source's weights: its features as our encoders give them, its logits.

    Args:
      origin: the source; without a classification head there are no logits.
      image: (b, h, w, c) float32.

    Returns:
      features (b, h, w, c), finest first: the stem's activated output, then the last block's at
      each further resolution; logits (b, classes) or None.

    Raises:
      WeightsError: torch or timm is not installed, or timm has no such network.
    """
    try:
        import timm
        import torch
    except ImportError as error:
        raise WeightsError(f"{error.name} is not installed") from error
    family = families.of(origin.name.architecture)
    name = reference(origin)
    classifier = origin.arrays.get(f"{family.CLASSIFIER}.weight")
    options = {} if classifier is None else {"num_classes": len(classifier)}
    if not timm.is_model(name):
        raise WeightsError(f"timm {timm.__version__} has no network {name}")
    with torch.random.fork_rng(devices=[]):  # its initialisation draws
        model = timm.create_model(
            name, pretrained=False, in_chans=image.shape[-1], **options
        ).eval()
    if origin.origin.get("scheme"):  # of a library with an eps of its own
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = origin.name.eps
    # Copied: torch warns of memory that it may not write to.
    state = {name: torch.tensor(np.array(array)) for name, array in origin.arrays.items()}
    try:
        missing = model.load_state_dict(state, strict=classifier is not None).missing_keys
    except RuntimeError as error:  # torch's word for names and shapes that do not fit
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"the source does not fit timm's network: {reason}") from error
    if body := [name for name in missing if not family.of_head(name)]:
        raise WeightsError(f"the source holds no {', '.join(body[:3])}")
    kept: list[Any] = []
    for module in family.feature_modules(model):
        module.register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        logits = model(torch.tensor(np.moveaxis(image, -1, 1).copy()))
    stem, *stages = [np.moveaxis(feature.numpy(), 1, -1) for feature in kept]
    coarser = {stage.shape[1:3]: stage for stage in stages if stage.shape[1:3] != stem.shape[1:3]}
    return [stem, *coarser.values()], None if classifier is None else logits.numpy()


# --------------------------------------------------------------------------- inputs, numbers


def image(channels: int) -> np.ndarray:
    """A standard normal image, (1, plane, plane, channels)."""
    return np.random.default_rng(SEED).normal(size=(1, PLANE, PLANE, channels)).astype(np.float32)


def perturbed(image: np.ndarray) -> np.ndarray:
    """The image, every value changed by about `NUDGE` of itself."""
    noise = np.random.default_rng(SEED + 2).normal(size=image.shape).astype(np.float32)
    return image * (1 + NUDGE * noise)


def limits(features: list[np.ndarray], nudged: list[np.ndarray]) -> list[float | None]:
    """Up to which relative error each feature is called equal; three digits.

    Args:
      features: of an image.
      nudged: of the same image, `perturbed`.
    """
    changes = [relative_error(b, a) for a, b in zip(features, nudged, strict=True)]
    return [short(min(max(TOLERANCE, change), LOOSEST)) for change in changes]


def short(value: float) -> float | None:
    """Three digits; None for what JSON has no number for."""
    return float(f"{value:.3g}") if math.isfinite(value) else None


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected| in the Euclidean norm; infinite if anything is not finite."""
    difference = np.linalg.norm((found - expected).astype(np.float64).ravel())
    size = np.linalg.norm(expected.astype(np.float64).ravel())
    if not np.isfinite(difference) or (size == 0 and difference > 0):
        return math.inf
    return float(difference / size) if size else 0.0


def moments(feature: np.ndarray) -> dict[str, float | None]:
    """Mean and variance of all its values."""
    wide = feature.astype(np.float64)
    return {"mean": short(wide.mean()), "variance": short(wide.var())}
