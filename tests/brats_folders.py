"""Helpers of the tests of BraTS."""

import nibabel as nib
import numpy as np

from crossdim_jax.challenges.brats.challenge import BraTS

FOUR = ("flair", "t1", "t1ce", "t2")
GLI = ("t2f", "t1n", "t1c", "t2w")


def plain(convention="2021", modalities=FOUR, **kwargs):
    return BraTS("plain", convention, modalities, **kwargs)


def rewrite(path, array=None, affine=None, dtype=None):
    image = nib.load(path)
    array = np.asanyarray(image.dataobj) if array is None else array
    affine = image.affine if affine is None else affine
    dtype = dtype or array.dtype
    nib.save(nib.Nifti1Image(array.astype(dtype), affine, dtype=dtype), path)


def ids(cases):
    return [case.id for case in cases]
