"""The encoder of a trained run as weights for another network, in place of a weight file."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax import checkpoint, models, params, run_folder
from crossdim_jax.errors import ConfigError, WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights import Weights, content_sha256


def load(workdir: str | os.PathLike) -> Weights:
    """The encoder that a run folder's best checkpoint holds: its slow weights.

    Returns:
      weights whose record says what they are in the terms of `params.check`, and where they come
      from: the run, its step, and what the run itself had started from.

    Raises:
      WeightsError: the folder is not of a run, or of one that cannot be read.
      DataError: it has no checkpoint.
    """
    workdir = Path(workdir)
    path = workdir / run_folder.CONFIG
    try:
        attributes = dict(json.loads(path.read_text(encoding="utf-8"))["model"])
        model = models.build(attributes.pop("name"), **attributes)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(
            f"{workdir}: config.weights.file names a folder, which should be that of a run, but "
            f"its {path.name} cannot be used ({error}). Name a run folder or a .safetensors file."
        ) from error
    variables, record = checkpoint.load_variables(workdir)
    inside = params.encoder_path(model)
    arrays = {}
    for key, value in params.flatten(variables).items():
        collection, _, rest = key.partition("/")
        if rest.startswith(f"{inside}/"):
            short = rest.removeprefix(f"{inside}/")
            arrays[f"{collection}/{params.ENCODER}/{short}"] = np.asarray(value)
    stem = arrays[f"params/{params.ENCODER}/{encoders.stem(model.encoder)}"]
    return Weights(arrays, _record(workdir, model, stem.shape, record, arrays), workdir)


def _record(workdir: Path, model: Any, stem: tuple[int, ...], checkpointed: dict, arrays: dict):
    ndim, start = len(stem) - 2, workdir / run_folder.WEIGHTS
    before = json.loads(start.read_text(encoding="utf-8")) if start.exists() else {}
    shapes = {path: array.shape for path, array in arrays.items()}
    return {
        "source": "run",
        "id": before.get("id") or model.encoder,
        "run": str(workdir),
        "step": checkpointed.get("step"),
        "started_from": before or None,
        "sha256": content_sha256(arrays),
        "licence": before.get("licence", "unknown"),
        "architecture": model.encoder,
        "padding": model.padding,
        "eps": model.encoder_eps,
        "ndim": ndim,
        "inflate": before.get("inflate"),
        "in_channels": int(stem[-2]),
        "stem": "trained",
        "norm": model.norm,
        "statistics": "trained",
        **params.depth_form(shapes, ndim),
    }
