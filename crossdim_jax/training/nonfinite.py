"""A step whose loss is not a number: what is said of it, and the batch kept to look at."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossdim_jax.storage.files import replacing
from crossdim_jax.text import shown

FOLDER = "nonfinite"


def describe(step: int, loss: float, norm: float, batch: Mapping[str, Any]) -> str:
    """Names the step and the cases, and those whose image already is not finite.

    Args:
      step: number of the step.
      loss: mean loss of the batch.
      norm: of its gradient.
      batch: this process's part; `image` `(b, *spatial, c)` and perhaps `id` `(b,)`.
    """
    ids = [shown(name) for name in _ids(batch)]
    image = np.asarray(batch["image"])
    bad = ~np.isfinite(image).reshape(len(image), -1).all(1)
    text = (
        f"step {step}: the loss is {loss:g} and the norm of its gradient {norm:g}; cases in that "
    )
    text += f"batch: {', '.join(ids) or 'unnamed'}."
    if bad.any():
        named = [name for name, wrong in zip(ids, bad, strict=False) if wrong]
        text += f" The image itself is not finite in {', '.join(named) or 'some of them'}."
    return text


def dump(
    workdir: str | os.PathLike, step: int, loss: float, norm: float, batch: Mapping[str, Any]
) -> str:
    """Writes this process's part of a batch to `nonfinite/step_N.npz`; says where, or why not."""
    process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = Path(workdir) / FOLDER / f"step_{step}{process}.npz"
    arrays = {name: np.asarray(array) for name, array in batch.items() if name != "id"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            ids = np.array(_ids(batch), np.str_)
            np.savez_compressed(temporary, step=step, loss=loss, grad_norm=norm, id=ids, **arrays)
    except OSError as error:  # what it is written for must not be hidden by this
        return f"Their batch could not be written to {path} ({error.strerror or error})."
    return f"Their batch is in {path} (numpy.load)."


def _ids(batch: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in batch.get("id", ())]
