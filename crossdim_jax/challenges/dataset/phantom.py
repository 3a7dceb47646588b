"""Phantoms as a data set in nnU-Net's form: a ball in a bright box, in one channel."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from crossdim_jax import ranges
from crossdim_jax.challenges import phantoms
from crossdim_jax.challenges.dataset.challenge import Dataset
from crossdim_jax.challenges.dataset.description import FILE
from crossdim_jax.errors import DataError
from crossdim_jax.storage.files import write_text

DESCRIPTION = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "shell": 1, "core": 2},
    "file_ending": ".nii.gz",
}
_RECORD = "phantoms.json"
_SPACING_MM = (1.5, 1.0, 1.2)  # (z, y, x), all different


class Phantom(Dataset):
    """The phantoms as a challenge, with the settings of `Dataset`, so that one config serves both.

    What they hold is known before there are any.
    """

    name = "dataset_phantom"
    fixed = DESCRIPTION

    @classmethod
    def make_phantoms(cls, root: str | os.PathLike, n: int, **recipe: object) -> Path:
        """See `ensure`."""
        return ensure(root, n, **recipe)


def ensure(
    root: str | os.PathLike, n: int, *, shape: Sequence[int] = (32, 40, 40), seed: int = 0
) -> Path:
    """Makes sure that `root` holds exactly these n phantoms, and nothing else.

    Raises DataError if the folder holds other files and no record, or cannot be written to.
    """
    root, shape = Path(root), tuple(shape)
    ranges.check("phantoms", n=n, seed=seed, shape=shape)
    record = {"version": 1, "n": n, "shape": list(shape), "seed": seed}
    path = root / _RECORD
    phantoms.refuse_foreign(root, _RECORD)
    try:
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == record:
            if len(list(root.glob("*Tr/*.nii.gz"))) == 2 * n:
                return root
        for folder in ("imagesTr", "labelsTr"):
            shutil.rmtree(root / folder, ignore_errors=True)
            (root / folder).mkdir(parents=True)
        write_text(path, json.dumps(record))
        write_text(root / FILE, json.dumps(DESCRIPTION | {"numTraining": n}, indent=1))
        for index in range(n):
            image, label = make(index, shape=shape, seed=seed)
            _save(root / "imagesTr" / f"phantom_{index:03d}_0000.nii.gz", image)
            _save(root / "labelsTr" / f"phantom_{index:03d}.nii.gz", label)
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: phantoms cannot be written ({error})") from error
    return root


def make(index: int, *, shape: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One phantom: image (z, y, x) int16 and label uint8, a core within a shell."""
    rng = np.random.default_rng([seed, index])
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    centre = rng.uniform(-0.25, 0.25, 3).reshape(3, 1, 1, 1)
    radius = np.sqrt(((axes - centre) ** 2).sum(0)) / rng.uniform(0.45, 0.6)
    label = np.select([radius < 0.55, radius < 1], [2, 1], 0).astype(np.uint8)
    image = np.array([300.0, 500.0, 800.0])[label] + rng.normal(0, 60, shape)
    image = ndimage.gaussian_filter(image, 0.5) * rng.uniform(0.5, 2)  # no common unit
    return image.astype(np.int16), label


def _save(path: Path, array: np.ndarray) -> None:
    z, y, x = _SPACING_MM
    affine = np.diag([-x, -y, z, 1.0])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine), path)
