"""Small data sets in every form, for tests."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from crossdim_jax import challenges

AFFINE = np.diag([-1.0, -1.2, 2.0, 1.0])
SHAPE = (9, 8, 6)  # on disk (x, y, z)
LABELS = {"background": 0, "liver": 1, "spleen": 2}


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def image(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.int16)


def label(*values: int, shape=SHAPE, dtype=np.uint8) -> np.ndarray:
    """A label with each value in a row of its own, the rest background."""
    array = np.zeros(shape, dtype)
    for i, value in enumerate(values):
        array[2:5, 1 + i, 2:4] = value
    return array


def describe(root: Path, remove=(), **keys) -> Path:
    """dataset.json in nnU-Net's form; keys replace those that are there."""
    record = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": 3,
        "file_ending": ".nii.gz",
    } | keys
    for key in remove:
        del record[key]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(record))
    return root


def nnunet(root: Path, cases=("a", "b", "c"), channels=1, values=(1, 2), **keys) -> Path:
    """A raw folder of nnU-Net: one file for each channel."""
    names = {str(i): f"T{i}" for i in range(channels)} if channels > 1 else {"0": "CT"}
    describe(root, **{"channel_names": names, "numTraining": len(cases)} | keys)
    for k, case in enumerate(cases):
        for c in range(channels):
            save(root / "imagesTr" / f"{case}_{c:04d}.nii.gz", image(10 * k + c))
        save(root / "labelsTr" / f"{case}.nii.gz", label(*values))
    return root


def decathlon(root: Path, cases=("t_1", "t_2", "t_3"), channels=1, **keys) -> Path:
    """A task of the decathlon, 4-D where it has several channels."""
    for k, case in enumerate(cases):
        volume = np.stack([image(10 * k + c) for c in range(channels)], -1)
        save(root / "imagesTr" / f"{case}.nii.gz", volume if channels > 1 else volume[..., 0])
        (root / "imagesTr" / f"._{case}.nii.gz").write_bytes(b"resource fork")
        save(root / "labelsTr" / f"{case}.nii.gz", label(1, 2))
        save(root / "imagesTs" / f"{case}9.nii.gz", volume if channels > 1 else volume[..., 0])
    record = {
        "modality": {str(i): f"T{i}" for i in range(channels)},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "numTraining": len(cases),
        "training": [
            {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases
        ],
        "test": [f"./imagesTs/{c}9.nii.gz" for c in cases],
    }
    (root / "dataset.json").write_text(json.dumps(record | keys))
    return root


def datalist(root: Path, name="datalist.json", entries=None, **keys) -> Path:
    """A datalist of MONAI: subjects in folders of their own, two files an image, and folds."""
    if entries is None:
        entries = []
        for k, case in enumerate(("s1", "s2", "s3")):
            for c in ("t1", "t2"):
                save(root / case / f"{c}.nii.gz", image(k))
            save(root / case / "seg.nii.gz", label(1, 5))
            entries.append(
                {
                    "image": [f"{case}/t1.nii.gz", f"{case}/t2.nii.gz"],
                    "label": f"{case}/seg.nii.gz",
                    "fold": k % 2,
                }
            )
    (root / name).write_text(json.dumps({"training": entries} | keys))
    return root


def challenge(root, **settings):
    return challenges.get("dataset", root=str(root), **settings)
