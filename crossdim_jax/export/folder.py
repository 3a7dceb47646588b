"""Model folder: an exported model with all that its use needs, laid out as a bundle of MONAI.

    configs/metadata.json   what the model is, and under "crossdim_jax" how files become labels
    models/*.onnx           the network, or one for each fold of a cross-validation
    docs/README.md          model card
    LICENSE  requirements.txt  checksums.json

Format: MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdim_jax import challenges
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.evaluation import postprocessing
from crossdim_jax.inference.windows import Windows
from crossdim_jax.storage import checksums
from crossdim_jax.storage.records import COUNT, FIELDS, TEXTS, check, read_record

METADATA = "configs/metadata.json"
MODELS = "models"
CARD = "docs/README.md"
LICENCE = "LICENSE"
REQUIREMENTS = "requirements.txt"
KEY = "crossdim_jax"  # of what is this project's own in the metadata
FORMAT = 1
REMEDY = "copy the folder again, or export the run again"


@dataclasses.dataclass(frozen=True)
class Model:
    """Contents of a model folder.

    Attributes:
      challenge: reads cases, prepares them, and makes labels of probabilities.
      windows: the way of an image through the networks, and back.
      networks: ONNX files whose mean probabilities predict.
      rules: of postprocessing, applied to the labels.
    """

    challenge: Challenge
    windows: Windows
    networks: tuple[Path, ...]
    rules: tuple[postprocessing.Rule, ...] = ()


def own_record(
    challenge: Challenge,
    windows: Windows,
    networks: list[str],
    rules: Sequence[postprocessing.Rule],
    **more: Any,
) -> dict:
    """The part of the metadata from which `read` makes a `Model`; `more` is for people."""
    return {
        "format": FORMAT,
        "challenge": challenge.record(),
        "inference": {
            "patch": list(windows.patch),
            "overlap": windows.overlap,
            "flips": list(windows.flips or ()),
            "window_batch": windows.window_batch,
            "activation": challenge.activation,
        },
        "networks": networks,
        "postprocessing": postprocessing.record(rules),
        **more,
    }


def read(folder: Path) -> Model:
    """The model in a folder. Raises DataError if it is none, or not as it was written."""
    if not (folder / METADATA).is_file():
        raise DataError(
            f"{folder}: holds no {METADATA}; expected a folder written by --mode=export"
        )
    if not (folder / checksums.FILE).is_file():
        raise DataError(
            f"{folder}: holds no {checksums.FILE}, so it was not written to its end; {REMEDY}"
        )
    if wrong := checksums.damage(folder):
        raise DataError(f"{folder}: {wrong}; {REMEDY}")
    path = folder / METADATA
    own = read_record(path, {KEY: FIELDS}, remedy=REMEDY)[KEY]
    forms = {"format": COUNT, "challenge": FIELDS, "inference": FIELDS, "networks": TEXTS}
    check(own, path, forms, remedy=REMEDY)
    if own["format"] > FORMAT:
        raise DataError(
            f"{path}: is of format {own['format']}, this version reads up to {FORMAT}; install a "
            "later crossdim_jax"
        )
    try:
        return _model(own, folder)
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{path}: cannot be used: {error}; {REMEDY}") from error


def _model(own: Mapping[str, Any], folder: Path) -> Model:
    challenge, inference = challenges.of_record(own["challenge"]), own["inference"]
    windows = Windows(
        tuple(inference["patch"]),
        inference["overlap"],
        tuple(inference["flips"]),
        inference["window_batch"],
    )
    if outside := [name for name in own["networks"] if Path(name).name != name]:
        raise ConfigError(f"networks: {outside[0]!r} is no name of a file in {MODELS}")
    networks = tuple(folder / MODELS / name for name in own["networks"])
    rules = postprocessing.of_record(own["postprocessing"], str(folder / METADATA))
    return Model(challenge, windows, networks, rules)


def as_json(record: Mapping[str, Any]) -> str:
    """A record as text."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
