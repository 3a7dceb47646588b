"""Phantoms: small synthetic brains with gliomas, in the layout and label convention of BraTS 2021.

For trying everything without patient data. Written as real NIfTI files, in several orientations
and with three different voxel lengths, so that mistakes in geometry show.
"""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from crossdim_jax import ranges
from crossdim_jax.challenges import phantoms
from crossdim_jax.challenges.brats import layouts
from crossdim_jax.challenges.brats.challenge import BraTS
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.storage.files import write_text, writing

SHAPE = (64, 72, 64)  # (z, y, x)
SPACING_MM = (1.2, 1.0, 1.1)  # (z, y, x), all different
_RECORD = "phantoms.json"
_VERSION = 2  # raise it when the images change
_ORIENTATIONS = ("LPS", "RAS", "PIR")  # on disk, by turns; RAS and PIR exercise the reorientation
_NO_ENHANCEMENT_EVERY = 5  # cases 4, 9, ... have no enhancing tumour
_BACKGROUND, _CORE, _EDEMA, _ENHANCING = 0, 1, 2, 4  # the 2021 label convention

# Mean intensity of each tissue, in the order of MODALITIES: flair, t1, t1ce, t2. Fluid is bright on
# T2 as edema is, and dark on FLAIR; vessels are bright on T1ce as enhancing tumour is; the caps of
# the ventricles on FLAIR as edema is: no single threshold finds the tumour.
_TISSUES = {
    "white": (0.52, 0.90, 0.90, 0.38),
    "grey": (0.62, 0.66, 0.68, 0.52),
    "fluid": (0.18, 0.28, 0.28, 1.10),
    "vessel": (0.40, 0.60, 1.35, 0.30),
    "cap": (0.98, 0.76, 0.76, 0.50),
    "edema": (0.98, 0.58, 0.58, 0.92),
    "enhancing": (0.86, 0.58, 1.30, 0.72),
    "core": (0.62, 0.40, 0.38, 0.98),
}


class Phantom(BraTS):
    """Phantoms as a challenge: BraTS 2021 regions, labels and metrics.

    Takes the settings of `BraTS`, so that one config serves both. The smallest enhancing rims of
    phantoms of default size and spacing measure some 500 mm^3.

    Raises ConfigError if layout or convention is neither "auto" nor "2021", as the files are.
    """

    name = "phantom"

    def __init__(
        self,
        layout: str = "auto",
        convention: str = "auto",
        modalities: Sequence[str] | None = None,
        et_min_mm3: float = 200.0,
        aggregate: str = "clean",
    ):
        for field, value in (("layout", layout), ("convention", convention)):
            if value not in ("auto", "2021"):
                raise ConfigError(f"{field} is {value!r}; phantoms are written as '2021' or 'auto'")
        super().__init__("2021", "2021", modalities, et_min_mm3, aggregate)

    @classmethod
    def make_phantoms(cls, root: str | os.PathLike, n: int, **recipe: object) -> Path:
        """See `ensure`."""
        return ensure(root, n, **recipe)


def ensure(
    root: str | os.PathLike,
    n: int,
    *,
    shape: Sequence[int] = SHAPE,
    seed: int = 0,
    spacing_mm: Sequence[float] = SPACING_MM,
) -> Path:
    """Ensures that `root` holds exactly these n phantoms; writes only what is absent.

    A record in the folder says what was made and how. Phantoms made otherwise are replaced; a
    folder with anything else in it is left alone. To be called by one process at a time: another
    that calls it, or looks for cases, in the meantime may find some absent. Of several processes
    that start together, let the first call it and the others wait.

    Args: as `generate`.

    Returns:
      The root.

    Raises:
      DataError: the folder holds other files and no record, or cannot be written to.
    """
    root = Path(root)
    record = _record(n, shape, seed, spacing_mm)
    path = root / _RECORD
    phantoms.refuse_foreign(root, _RECORD)
    if path.is_file():
        _remove_outdated(root, path, record)
    generate(root, n, shape=shape, seed=seed, spacing_mm=spacing_mm)
    return root


def generate(
    root: str | os.PathLike,
    n: int,
    *,
    shape: Sequence[int] = SHAPE,
    seed: int = 0,
    spacing_mm: Sequence[float] = SPACING_MM,
) -> list[Path]:
    """Writes n phantoms `Phantom_000/Phantom_000_{flair,t1,t1ce,t2,seg}.nii.gz`.

    Case i depends on seed, i, shape and spacing only. Complete cases that are there are kept.

    Args:
      root: created if need be.
      n: number of cases.
      shape: (z, y, x) voxels, each at least 24.
      seed: 0 or more.
      spacing_mm: (z, y, x).

    Returns:
      The case folders.

    Raises:
      ConfigError: a number is out of range.
      DataError: the folder cannot be written to.
    """
    root, record = Path(root), _record(n, shape, seed, spacing_mm)
    with writing(root, "phantoms"):
        root.mkdir(parents=True, exist_ok=True)
        # First of all: an interrupted run leaves a folder that `ensure` knows to be its own.
        write_text(root / _RECORD, json.dumps(record, indent=1))
        for index, case in enumerate(record["cases"]):
            if len(list((root / case).glob(f"{case}_*.nii.gz"))) < 5:
                _write_case(root, case, index, record)
    return [root / case for case in record["cases"]]


def make(
    index: int, *, shape: Sequence[int] = SHAPE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Phantom: image (z, y, x, 4) int16, exactly 0 outside the brain; label (z, y, x) uint8."""
    rng = np.random.default_rng([seed, index])
    grid = _grid(shape)
    tissue = _anatomy(grid, rng)
    enhancing = index % _NO_ENHANCEMENT_EVERY != _NO_ENHANCEMENT_EVERY - 1
    label = _tumour(grid, tissue, enhancing, rng)
    names = list(_TISSUES)
    for value, name in ((_EDEMA, "edema"), (_CORE, "core"), (_ENHANCING, "enhancing")):
        tissue[label == value] = names.index(name)
    brain = tissue >= 0
    image = np.zeros((*shape, len(layouts.MODALITIES)), np.int16)
    for channel in range(image.shape[-1]):
        mean = np.array([values[channel] for values in _TISSUES.values()])
        volume = np.where(brain, mean[tissue], 0.0)
        # Partial volume: tissues mix at their borders, inside the brain only.
        inside = ndimage.gaussian_filter(brain.astype(float), 0.6)
        volume = ndimage.gaussian_filter(volume, 0.6) / np.maximum(inside, 1e-3)
        volume *= np.exp(0.08 * _smooth_noise(shape, 0.35, rng))  # receive-coil bias field
        volume += rng.normal(0, 0.055, shape)
        gain = rng.uniform(250, 900)  # scanners have no common unit
        # At least 1: a zero inside the brain would count as background.
        image[..., channel] = np.where(brain, np.maximum(np.rint(gain * volume), 1), 0)
    return image, label


def _record(
    n: int, shape: Sequence[int], seed: int, spacing_mm: Sequence[float]
) -> dict[str, object]:
    shape, spacing_mm = list(shape), list(spacing_mm)
    ranges.check("phantoms", n=n, seed=seed, shape=shape, spacing_mm=spacing_mm)
    shape, spacing_mm = [int(v) for v in shape], [float(v) for v in spacing_mm]
    return {
        "version": _VERSION,
        "shape": shape,
        "seed": int(seed),
        "spacing_mm": spacing_mm,
        "cases": [f"Phantom_{index:03d}" for index in range(n)],
    }


def _remove_outdated(root: Path, path: Path, record: dict[str, object]) -> None:
    """Removes recorded phantoms that `record` does not want, or wants otherwise."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        cases = [str(case) for case in old["cases"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is not a record of phantoms ({error!r}); choose an empty folder"
        ) from error
    same = all(old.get(name) == record[name] for name in record if name != "cases")
    for case in cases:
        # Only names that we make: the record might have been edited.
        if case.startswith("Phantom_") and Path(case).name == case:
            if not same or case not in record["cases"]:
                shutil.rmtree(root / case, ignore_errors=True)


def _write_case(root: Path, case: str, index: int, record: dict[str, object]) -> None:
    image, label = make(index, shape=record["shape"], seed=record["seed"])
    codes = _ORIENTATIONS[index % len(_ORIENTATIONS)]
    temporary = root / f".{case}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        volumes = dict(zip(layouts.MODALITIES, np.moveaxis(image, -1, 0), strict=True))
        for name, volume in {**volumes, "seg": label}.items():
            nifti = _nifti(volume, record["spacing_mm"], codes)
            nib.save(nifti, temporary / f"{case}_{name}.nii.gz")
        shutil.rmtree(root / case, ignore_errors=True)  # an incomplete one
        try:
            os.replace(temporary, root / case)
        except OSError:
            # Another run has just written the same phantom.
            if not (root / case).is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _nifti(volume: np.ndarray, spacing_mm: Sequence[float], codes: str) -> nib.Nifti1Image:
    """NIfTI image of a (z, y, x) volume in LPS, with axes on disk that grow towards `codes`."""
    z, y, x = spacing_mm
    affine = np.diag([-x, -y, z, 1.0])  # LPS voxel axes in nibabel's RAS+ millimetres
    centre = (np.array(volume.shape[::-1]) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ centre
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(transform)


def _grid(shape: Sequence[int]) -> np.ndarray:
    """Coordinates (3, z, y, x): each axis from -1 to 1 across the volume."""
    axes = [np.linspace(-1, 1, length) for length in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _smooth_noise(shape: Sequence[int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Random field of mean 0 and sd 1 that varies over `scale` times half the volume."""
    sigma = [scale * length / 2 for length in shape]
    spectrum = ndimage.fourier_gaussian(np.fft.rfftn(rng.normal(size=shape)), sigma, shape[-1])
    field = np.fft.irfftn(spectrum, shape, axes=(0, 1, 2))
    return (field - field.mean()) / field.std()


def _ellipsoid(grid: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Radius of each voxel in units of the ellipsoid's: below 1 inside."""
    offset = np.stack([(g - c) / r for g, c, r in zip(grid, centre, radii, strict=True)])
    return np.sqrt((offset**2).sum(axis=0))


def _anatomy(grid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Index into `_TISSUES` per voxel, -1 outside the brain."""
    names, shape = list(_TISSUES), grid.shape[1:]
    radii = np.array([0.86, 0.90, 0.80]) * rng.uniform(0.96, 1.04, 3)
    radius = _ellipsoid(grid, (0, 0, 0), radii)
    tissue = np.full(shape, -1)
    tissue[radius < 1] = names.index("grey")
    # Folds: the cortex's inner and outer borders waver, and fluid fills the furrows.
    folds = _smooth_noise(shape, 0.07, rng)
    tissue[radius + 0.08 * folds < 0.82] = names.index("white")
    fissure = (np.abs(grid[2]) < 0.035) & (radius > 0.62) & (grid[0] > -0.3)
    tissue[((radius > 0.88) & (radius < 1) & (folds > 0.5)) | fissure & (radius < 1)] = names.index(
        "fluid"
    )
    wide = rng.uniform(0.9, 1.15)
    for side in (-1, 1):
        nucleus = _ellipsoid(grid, (-0.12, -0.05, side * 0.30), (0.16, 0.24, 0.10))
        tissue[nucleus < 1] = names.index("grey")
        # Ventricles: two bent ellipsoids, nearer to each other in front, with bright caps.
        middle = side * (0.13 + 0.10 * (grid[1] + 0.2) ** 2)
        ventricle = np.sqrt(
            ((grid[0] - 0.10) / 0.17) ** 2
            + ((grid[1] + 0.02) / (0.44 * wide)) ** 2
            + ((grid[2] - middle) / (0.075 * wide)) ** 2
        )
        cap = (ventricle < 1.7) & (np.abs(grid[1]) > 0.30 * wide)
        tissue[cap] = names.index("cap")
        tissue[ventricle < 1] = names.index("fluid")
    # The sagittal sinus runs along the rim in the midline; a few vessels cross the white matter.
    sinus = (np.abs(grid[2]) < 0.05) & (radius > 0.90) & (radius < 0.98) & (grid[0] > -0.1)
    vessels = (np.abs(_smooth_noise(shape, 0.12, rng)) < 0.09) & (
        np.abs(_smooth_noise(shape, 0.12, rng)) < 0.11
    )
    tissue[sinus | (vessels & (radius < 0.9))] = names.index("vessel")
    return tissue


def _tumour(
    grid: np.ndarray, tissue: np.ndarray, enhancing: bool, rng: np.random.Generator
) -> np.ndarray:
    """Label of a tumour in one hemisphere: edema around a core, with or without a bright rim."""
    shape = grid.shape[1:]
    side = rng.choice([-1, 1])
    centre = (rng.uniform(-0.2, 0.35), rng.uniform(-0.45, 0.45), side * rng.uniform(0.34, 0.46))
    size = rng.uniform(0.26, 0.36)
    radii = size * rng.uniform(0.85, 1.2, 3)
    radius = _ellipsoid(grid, centre, radii)
    edema = radius + 0.16 * _smooth_noise(shape, 0.16, rng) < 1
    inner = radius + 0.06 * _smooth_noise(shape, 0.12, rng)
    core_radius = rng.uniform(0.58, 0.70)
    core = inner < core_radius
    # The rim is about 2.5 voxels wide, at least a quarter of the core's radius.
    voxel = 2 / min(shape)
    rim = max(2.5 * voxel / size, 0.25 * core_radius)
    label = np.zeros(shape, np.uint8)
    label[edema] = _EDEMA
    label[core] = _ENHANCING if enhancing else _CORE
    label[inner < core_radius - rim] = _CORE
    # Tumours respect the brain's surface and, but for the core, leave the ventricles free.
    fluid = tissue == list(_TISSUES).index("fluid")
    label[(tissue < 0) | (fluid & ~core)] = _BACKGROUND
    return label
