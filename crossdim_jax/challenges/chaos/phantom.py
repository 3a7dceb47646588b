"""Phantoms of CHAOS: small abdomens as DICOM series and PNG masks, in the challenge's layout.

They hold on purpose what trips up a reader in the real data: z that falls while file numbers rise,
a wrong SliceThickness, a non-zero intercept, one SeriesInstanceUID for each file, numbers without
leading zeros, phases of T1DUAL that differ in number, MR matrices of several sizes.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy import ndimage

from crossdim_jax import ranges
from crossdim_jax.challenges import phantoms
from crossdim_jax.challenges.chaos import layouts, mask_files
from crossdim_jax.errors import DataError
from crossdim_jax.storage.files import write_text

FIELD_MM = 360.0
_RECORD = "phantoms.json"
_VERSION = 3  # raise it when the images change
_SLICES = {"CT": 16, "T1DUAL": 12, "T2SPIR": 12}
_MATRIX = {"CT": 1.0, "T1DUAL": 0.75, "T2SPIR": 0.875}  # of `size`
_HEIGHT_MM = 190.0
_RIGHT, _LEFT = -1, 1  # x grows towards the patient's left

# Mean intensity of each tissue: HU in CT, arbitrary in MR. Stomach and vessels come near organs, so
# that no threshold finds these.
_TISSUES = {
    #            CT    in    out   T2
    "air": (-1000, 0, 0, 0),
    "fat": (-100, 760, 560, 110),
    "muscle": (55, 330, 340, 130),
    "bone": (260, 280, 240, 170),
    "cord": (30, 240, 250, 620),
    "stomach": (45, 300, 310, 560),
    "vessel": (165, 180, 190, 60),
    "liver": (112, 520, 530, 210),
    "right_kidney": (185, 410, 430, 640),
    "left_kidney": (185, 410, 430, 640),
    "spleen": (128, 455, 470, 470),
}
_COLUMN = {"CT": 0, "InPhase": 1, "OutPhase": 2, "T2SPIR": 3}


def ensure(root: str | os.PathLike, n: int, *, size: int = 128, seed: int = 0) -> Path:
    """Ensures that `root` holds exactly n CT and n MR patients; writes only if it does not.

    A record in the folder says what was made and how. Phantoms made otherwise are replaced; a
    folder with anything else in it is left alone. To be called by one process at a time.

    Args:
      root: created if need be.
      n: patients of each modality; they have nothing to do with one another.
      size: of a CT slice in pixels, at least 48; MR slices have 3/4 and 7/8 of it.
      seed: 0 or more.

    Returns:
      The root.

    Raises:
      ConfigError: a number is out of range.
      DataError: the folder holds other files and no record, or cannot be written to.
    """
    root, path = Path(root), Path(root) / _RECORD
    ranges.check("phantoms", n=n, seed=seed, size=size)
    record = {"version": _VERSION, "n": int(n), "size": int(size), "seed": int(seed)}
    phantoms.refuse_foreign(root, _RECORD)
    try:
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == record:
            return root
        shutil.rmtree(root / "Train_Sets", ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        # An interrupted run leaves a record that is not this one, so the next starts again.
        write_text(path, json.dumps(record | {"unfinished": True}))
        for index in range(n):
            _write_ct(root / "Train_Sets" / "CT" / str(index + 1), index, size, seed)
            _write_mr(root / "Train_Sets" / "MR" / str(index + 1), index, size, seed)
        write_text(path, json.dumps(record))
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: phantoms cannot be written ({error})") from error
    return root


def make(
    kind: str, shape: Sequence[int], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Abdomen: its images by name, each (z, y, x) float, and organ numbers (z, y, x).

    kind: a key of `layouts.KINDS`; T1DUAL has an image for each phase. LPS, z upwards.
    """
    names = list(_TISSUES)
    tissue = _anatomy(shape, rng)
    label = np.zeros(shape, np.uint8)
    for number, organ in enumerate(mask_files.ORGANS, 1):
        label[tissue == names.index(organ)] = number
    channels = {"CT": ("CT",), "T1DUAL": layouts.PHASES, "T2SPIR": ("T2SPIR",)}[kind]
    fat = ndimage.gaussian_filter((tissue == names.index("fat")).astype(float), (0, 0.7, 0.7))
    body = tissue != names.index("air")
    texture = _smooth(shape, 1.2, rng)
    bias = 1 + 0.12 * _smooth(shape, shape[-1] / 3, rng)
    spread = {name: rng.normal(1, 0.05) for name in names}  # patients differ
    gain = rng.uniform(0.6, 1.5)
    images = {}
    for channel in channels:
        column = _COLUMN[channel]
        means = np.array([values[column] * spread[name] for name, values in _TISSUES.items()])
        if kind == "CT":
            means = np.array([values[0] + 60 * (spread[n] - 1) for n, values in _TISSUES.items()])
        volume = ndimage.gaussian_filter(means[tissue].astype(float), (0, 0.6, 0.6))
        if kind == "CT":
            images[channel] = volume + 14 * body * texture + rng.normal(0, 14, shape)
            continue
        if channel == "OutPhase":  # voxels that share fat and water cancel out
            volume *= 1 - 0.9 * 4 * fat * (1 - fat) * body
        volume = gain * bias * volume * (1 + 0.05 * texture)
        noise = rng.normal(0, 18 * gain, (2, *shape))
        images[channel] = np.hypot(volume + noise[0], noise[1])  # magnitudes are never negative
    return images, label


def _anatomy(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Index into `_TISSUES` of each voxel."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    wobble = 0.12 * _smooth(shape, shape[-1] / 16, rng)
    names = list(_TISSUES)
    tissue = np.zeros(shape, np.int8)

    def put(name: str, centre: Sequence[float], radii: Sequence[float], wavy: float = 1.0) -> None:
        jitter = rng.normal(0, 0.02, 3)
        size = np.asarray(radii) * rng.uniform(0.93, 1.07)
        away = sum(
            ((g - c - j) / r) ** 2
            for g, c, j, r in zip((z, y, x), centre, jitter, size, strict=True)
        )
        tissue[np.sqrt(away) + wavy * wobble < 1] = names.index(name)

    # (z, y, x): upwards, backwards, to the left; the body is a tube.
    put("fat", (0, 0, 0), (9, 0.72, 0.92), 0.15)
    put("muscle", (0, 0, 0), (9, 0.60, 0.79), 0.3)
    put("fat", (0, -0.06, 0), (9, 0.46, 0.66), 0.5)
    put("muscle", (0, 0.46, _RIGHT * 0.22), (9, 0.14, 0.16))
    put("muscle", (0, 0.46, _LEFT * 0.22), (9, 0.14, 0.16))
    put("bone", (0, 0.36, 0), (9, 0.13, 0.14), 0.3)
    put("cord", (0, 0.44, 0), (9, 0.045, 0.055), 0)
    put("vessel", (0, 0.17, _LEFT * 0.05), (9, 0.055, 0.055), 0)
    put("vessel", (0, 0.16, _RIGHT * 0.10), (9, 0.05, 0.07), 0)
    put("stomach", (0.2, -0.24, _LEFT * 0.30), (0.6, 0.18, 0.20))
    put("stomach", (-0.7, -0.22, _LEFT * 0.10), (0.4, 0.14, 0.22))
    put("spleen", (0.25, 0.13, _LEFT * 0.52), (0.50, 0.24, 0.15))
    put("liver", (0.25, -0.08, _RIGHT * 0.36), (0.72, 0.36, 0.32))
    put("liver", (0.35, -0.26, _RIGHT * 0.06), (0.42, 0.15, 0.26))
    put("right_kidney", (-0.35, 0.29, _RIGHT * 0.37), (0.56, 0.17, 0.15))
    put("left_kidney", (-0.20, 0.29, _LEFT * 0.37), (0.56, 0.17, 0.15))
    return tissue


def _smooth(shape: Sequence[int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Random field of mean 0 and sd 1 that varies over `sigma` pixels, and less along z."""
    sigmas = [sigma * n / shape[-1] for n in shape]
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigmas)
    return (field - field.mean()) / field.std()


def _write_ct(folder: Path, index: int, size: int, seed: int) -> None:
    rng = np.random.default_rng([seed, index, 0])
    n, pixels = _SLICES["CT"], _matrix("CT", size)
    images, label = make("CT", (n, pixels, pixels), rng)
    # Downwards: the first file is the highest slice, as in the real series.
    volume, label = images["CT"][::-1], label[::-1]
    names = [f"i{i:04d},0000b.dcm" for i in range(n)]
    uids = [f"{index}.ct"] if index % 2 == 0 else [f"{index}.ct.{i}" for i in range(n)]
    _write_series(folder / "DICOM_anon", names, volume, "CT", uids, seed, down=True)
    _write_masks(folder, [f"liver_GT_{i:03d}.png" for i in range(n)], label == 1)


def _write_mr(folder: Path, index: int, size: int, seed: int) -> None:
    for kind in ("T1DUAL", "T2SPIR"):
        # The same patient: organs differ between the sequences by breathing only, here not at all.
        rng = np.random.default_rng([seed, index, 1])
        n, pixels = _SLICES[kind], _matrix(kind, size)
        images, label = make(kind, (n, pixels, pixels), rng)
        target = folder / kind
        if kind == "T2SPIR":
            # Unpadded: as text, 10 comes before 2.
            stems = [f"IMG-0006-{i + 1}" for i in range(n)]
            names, uids = [f"{stem}.dcm" for stem in stems], [f"{index}.t2"]
            _write_series(target / "DICOM_anon", names, images["T2SPIR"], kind, uids, seed)
            _write_masks(target, [f"{stem}.png" for stem in stems], label)
            continue
        for odd, phase in enumerate(layouts.PHASES):
            stems = [f"IMG-0004-{2 * i + 2 - odd:05d}" for i in range(n)]
            keep = range(n - 1) if odd and index % 3 == 2 else range(n)  # one slice fewer
            names, uids = [f"{stems[i]}.dcm" for i in keep], [f"{index}.{phase}"]
            there = images[phase][list(keep)]
            _write_series(target / "DICOM_anon" / phase, names, there, kind, uids, seed)
        _write_masks(target, [f"IMG-0004-{2 * i + 2:05d}.png" for i in range(n)], label)


def _matrix(kind: str, size: int) -> int:
    return int(size * _MATRIX[kind])


def _write_masks(folder: Path, names: Sequence[str], masks: np.ndarray) -> None:
    """Writes PNG masks: 1-bit where the masks are boolean, else grey."""
    (folder / "Ground").mkdir(parents=True)
    grey = np.array([0, *mask_files.GREY], np.uint8)
    for name, mask in zip(names, masks, strict=True):
        image = mask if mask.dtype == bool else grey[mask]
        Image.fromarray(image).save(folder / "Ground" / name)


def _write_series(
    folder: Path,
    names: Sequence[str],
    volume: np.ndarray,
    kind: str,
    uids: Sequence[str],
    seed: int,
    *,
    down: bool = False,
) -> None:
    """Writes slices in file order. uids: of the series, one for all or one for each file."""
    folder.mkdir(parents=True)
    step_mm = _HEIGHT_MM / _SLICES[kind]
    intercept = -1000 if kind == "CT" else 0
    # 0 to 65535, as in the real files.
    stored = np.clip(np.rint(volume - intercept), 0, 65535).astype(np.uint16)
    for index, name in enumerate(names):
        uid = uids[index % len(uids)]
        z_mm = (len(names) - index if down else index) * step_mm
        data = _slice(stored[index], kind, index, z_mm, step_mm, f"{seed}.{uid}")
        data.RescaleSlope, data.RescaleIntercept = 1, intercept
        data.save_as(folder / name, enforce_file_format=True)


def _slice(
    pixels: np.ndarray, kind: str, index: int, z_mm: float, step_mm: float, uid: str
) -> FileDataset:
    """Dataset of one slice, with no more in it than a reader and a segmentation need."""
    modality = layouts.KINDS[kind]
    patient = uid.split(".")[1]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["slice", uid, kind, str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    data.Modality, data.ProtocolName = modality, kind
    data.PatientID = data.PatientName = f"Phantom^{modality}{patient}"
    data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.StudyID = ""
    data.StudyDate, data.StudyTime = "20260101", "120000"
    data.ReferringPhysicianName = data.Manufacturer = ""
    data.StudyInstanceUID = generate_uid(entropy_srcs=["study", modality, patient])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["series", uid, kind])
    data.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", modality, patient])
    data.SeriesNumber, data.InstanceNumber = 1, index + 1
    rows, columns = pixels.shape
    pixel_mm = FIELD_MM / columns
    corner = -(columns - 1) / 2 * pixel_mm
    data.ImagePositionPatient = [round(corner, 4), round(corner, 4), round(z_mm, 4)]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [round(pixel_mm, 6)] * 2
    data.SliceThickness = round(1.6 * step_mm, 4)  # not the distance of the slices
    data.Rows, data.Columns = rows, columns
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = pixels.tobytes()
    return data
