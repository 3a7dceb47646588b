"""Metadata and model card of an exported model."""

import datetime
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import crossdim_jax
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.export.folder import KEY, METADATA, MODELS
from crossdim_jax.imaging import preprocess
from crossdim_jax.weights import control

RUNTIME = (
    *("onnxruntime", "numpy", "scipy", "nibabel", "pydicom", "pillow"),
    *("contourpy", "tqdm"),
)
NO_LICENCE = "not stated by whoever exported the model: ask them before you use or pass it on"
# What is done to every case, whatever the challenge's settings say.
ORIENTATION = (
    "volumes are read with axes (z, y, x) in LPS orientation: z from foot to head, y from front to "
    "back, x from right to left; images outside a patient as (frame, row, column); results are "
    "written on the case's own grid"
)
DECISIONS = {
    "sigmoid": "a voxel is in a class if its probability is above 0.5",
    "softmax": "a voxel is of its most probable class",
}


def requirements() -> str:
    """A requirements file of what `crossdim-predict` needs."""
    found = {re.split(r"[^\w-]", line)[0]: line.partition(";")[0] for line in _required()}
    return "".join(f"{found.get(name, name).strip()}\n" for name in RUNTIME)


def _required() -> Sequence[str]:
    try:
        return metadata.requires("crossdim_jax") or ()
    except metadata.PackageNotFoundError:
        return ()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "0"


def preparation(challenge: Challenge) -> dict[str, Any]:
    """The way from files to labels in words, for those who write their own."""
    return {
        "orientation": ORIENTATION,
        "outside_of_masked_images": preprocess.PARAMETERS["outside"],
        "decision": DECISIONS[challenge.activation],
        **challenge.provenance(),
    }


def bundle(
    challenge: Challenge, spatial: Sequence[int], licence: str, own: Mapping[str, Any]
) -> dict[str, Any]:
    """metadata.json in MONAI's form; `own` is the record of `folder.own_record`."""

    def tensor(kind: str, channels: Sequence[str], **more: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "modality": "n/a",
            "num_channels": len(channels),
            "spatial_shape": list(spatial),
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": True,
            "channel_def": {str(i): name for i, name in enumerate(channels)},
            **more,
        }

    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported on {datetime.date.today().isoformat()}"},
        "monai_version": "not needed",
        "pytorch_version": "not needed",
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in RUNTIME},
        "name": f"{challenge.name} segmentation",
        "task": "segmentation of " + ", ".join(challenge.foreground),
        "description": f"Segmentation network exported by crossdim_jax {crossdim_jax.__version__}",
        "authors": "not stated",
        "copyright": "not stated",
        "license": licence or NO_LICENCE,
        "network_data_format": {
            "inputs": {"image": tensor("image", challenge.modalities, format="magnitude")},
            "outputs": {"logits": tensor("logits", challenge.classes, format="segmentation")},
        },
        KEY: own,
    }


def model_card(record: Mapping[str, Any], scores: str, notes: Sequence[str]) -> str:
    """The card, Markdown: what the model does, how it was checked, what it scores, how to use it.

    Args:
      record: of `bundle`.
      scores: table of the held-out cases; "" if there is none.
      notes: what a user should know besides.
    """
    own = record[KEY]
    check, inference = own["check"], own["inference"]
    image = record["network_data_format"]["inputs"]["image"]
    weights = [f"- {_weights(one)}" for one in own["weights"]]
    lines = [
        f"# {record['name']}",
        f"{record['task'].capitalize()}, from {', '.join(image['channel_def'].values())}.",
        "## Use",
        "```\npip install -r MODEL/requirements.txt\npip install --no-deps CROSSDIM_JAX\n"
        "crossdim-predict MODEL INPUT OUTPUT\n```",
        "MODEL is this folder, CROSSDIM_JAX a clone or a wheel of the project that exported it.",
        f"INPUT is a folder of cases in the layout of the challenge `{own['challenge']['name']}`. "
        f"The networks are `{MODELS}/`: {', '.join(own['networks'])}; what is done before and "
        f"after them is in `{METADATA}`. Neither JAX nor PyTorch is needed.",
        "## Scores of held-out cases",
        scores or "None: the run folder held no evaluation.",
        "## Check",
        f"On {check['patches']} patches ({check['of']}) the logits of ONNX Runtime "
        f"{check['onnxruntime']} differ from JAX's by {check['max_relative_error']:.1e} of the "
        "largest at the most. JAX's own move by "
        f"{check['max_relative_sensitivity']:.1e} when the patch changes by a millionth.",
        "## Prediction",
        f"Windows of {inference['patch']} voxels that overlap by {inference['overlap']}, mirrored "
        f"along axes {inference['flips'] or 'none'}; {own['preparation']['decision']}; "
        f"{own['preparation']['orientation']}.",
        "## Weights",
        "\n".join(weights),
        "## Licence",
        record["license"],
        "## Limits",
        "Not a medical device. The scores are of the cases above; images of another kind, scanner "
        "or population may give worse results without a word."
        + "".join(f" {note}" for note in notes),
    ]
    return "\n\n".join(lines) + "\n"


def _weights(one: Mapping[str, Any]) -> str:
    start = one.get("started_from")
    origin = "random parameters"
    if start:
        parts = (f"licence {start.get('licence', 'unknown')}", control.text(start))
        origin = f"{start.get('id')} ({'; '.join(filter(None, parts))})"
    which = f" (the {one['checkpoint']} weights)" if "checkpoint" in one else ""
    return f"{one['file']}: step {one['step']}{which}, trained from {origin}"
