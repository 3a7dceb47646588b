"""The encoder of a trained run as weights for another network, in place of a weight file."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax import models
from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.storage import run_folder
from crossdim_jax.storage.reading import naming, read_bytes
from crossdim_jax.training import checkpoint
from crossdim_jax.weights.file import Weights, content_sha256
from crossdim_jax.weights.gate import check_numbers
from crossdim_jax.weights.merge import depth_form, encoder_path
from crossdim_jax.weights.paths import ENCODER, flatten
from crossdim_jax.weights.record import check_record


def load(workdir: str | os.PathLike) -> Weights:
    """The encoder of a run: its slow weights, the best or the last as `train.choose` of it says.

    Returns:
      weights whose record says what they are in the terms of `check_fit`, and where they come
      from: the run, its step, and what the run itself had started from.

    Raises:
      WeightsError: the folder is not of a run, or of one that cannot be read.
      DataError: it has no checkpoint.
    """
    workdir = Path(workdir)
    path = workdir / run_folder.CONFIG
    try:
        recorded = _read(path)
        attributes = dict(recorded["model"])
        best = recorded.get("train", {}).get("choose") != "last"
        model = models.build(attributes.pop("name"), **attributes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{workdir}: config.weights.file names a folder, which should be that of a run, but "
            f"its {path.name} cannot be used ({error}). Name a run folder or a .safetensors file."
        ) from error
    variables, record = checkpoint.load_variables(workdir, best=best)
    inside = encoder_path(model)
    arrays = {}
    for key, value in flatten(variables).items():
        collection, _, rest = key.partition("/")
        if rest.startswith(f"{inside}/"):
            short = rest.removeprefix(f"{inside}/")
            arrays[f"{collection}/{ENCODER}/{short}"] = np.asarray(value)
    encoder = model.encoder.name
    stem = arrays.get(f"params/{ENCODER}/{encoders.stem(encoder)}")
    if stem is None:
        raise WeightsError(
            f"{workdir}: its checkpoint holds no encoder {encoder}, which its {path.name} "
            "speaks of; name a run folder as its training left it"
        )
    check_numbers(arrays, str(workdir))
    return Weights(arrays, _record(workdir, model, stem.shape, record, arrays), workdir)


def _read(path: Path) -> dict[str, Any]:
    """A record of the run folder. Raises DataError if it cannot be read or is none."""
    content = read_bytes(path)
    with naming(path, "a record of a run, JSON,"):
        found = json.loads(content)
        if not isinstance(found, dict):
            raise TypeError(f"it holds {str(found)[:80]}")
        return found


def _without_folders(record: dict[str, Any]) -> dict[str, Any]:
    """A record in which runs are named without the folders they lie in, as older ones have them."""
    changes = {"run": Path(str(record["run"])).name} if record.get("run") else {}
    if isinstance(before := record.get("started_from"), dict):
        changes["started_from"] = _without_folders(before)
    return record | changes


def _record(workdir: Path, model: Any, stem: tuple[int, ...], checkpointed: dict, arrays: dict):
    spec, ndim, start = model.encoder, len(stem) - 2, workdir / run_folder.WEIGHTS
    before = _without_folders(_read(start)) if start.exists() else {}
    check_record(before, str(start))
    shapes = {path: array.shape for path, array in arrays.items()}
    return {
        "source": "run",
        "id": before.get("id") or spec.name,
        "run": workdir.resolve().name,
        "step": checkpointed.get("step"),
        "checkpoint": checkpoint.which(checkpointed),
        "started_from": before or None,
        "sha256": content_sha256(arrays),
        "licence": before.get("licence", "unknown"),
        "architecture": spec.name,
        "padding": spec.padding,
        "eps": spec.eps,
        "ndim": ndim,
        "inflate": before.get("inflate"),
        "control": before.get("control"),
        "in_channels": int(stem[-2]),
        "stem": "trained",
        "norm": spec.own_norm,
        "statistics": "trained",
        **depth_form(spec.name, shapes, ndim),
    }
