"""BraTS cases that a stand-in for a network predicts without error."""

import json

import nibabel as nib
import numpy as np

from crossdim_jax.evaluation import predict as predict_lib
from crossdim_jax.evaluation import score as evaluate

SHAPE = (12, 14, 10)  # as on disk
AFFINE = np.array([[1.2, 0, 0, -5], [0, 1, 0, 7], [0, 0, 2, 3], [0, 0, 0, 1.0]])  # RAS
LABELS = np.array([0, 1, 2, 4])


def make_case(root, name, seed):
    """A 2021 case whose every modality is 10 + the rank of the label inside a box, 0 outside."""
    rng = np.random.default_rng(seed)
    ranks = np.zeros(SHAPE, int)
    ranks[3:9, 4:11, 2:8] = rng.integers(0, 4, (6, 7, 6))
    ranks[3, 4, 2:6] = range(4)  # all four occur
    inside = np.zeros(SHAPE, bool)
    inside[1:11, 2:13, 1:9] = True
    folder = root / name
    folder.mkdir(parents=True)
    for modality in ("flair", "t1", "t1ce", "t2"):
        image = np.where(inside, 10 + ranks, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, AFFINE), folder / f"{name}_{modality}.nii.gz")
    label = nib.Nifti1Image(LABELS[ranks].astype(np.uint8), AFFINE)
    nib.save(label, folder / f"{name}_seg.nii.gz")


def oracle(image):
    """Region probabilities from the intensities of `make_case`, whatever their scale."""
    values = np.unique(image[..., 0][image[..., 0] != 0])
    ranks = np.searchsorted(values, image[..., 0]) * (image[..., 0] != 0)
    assert len(values) == 4
    return np.stack([ranks > 0, np.isin(ranks, (1, 3)), ranks == 3], -1).astype(np.float32)


def predict(challenge, files, folder, fn=oracle, **kwargs):
    return predict_lib.predict_folder(challenge, files, fn, folder, progress=False, **kwargs)


def score(challenge, files, folder, **kwargs):
    return evaluate.evaluate_cases(
        challenge, files, folder, folder.parent / "evaluation", progress=False, **kwargs
    )


def strict_json(path):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)
