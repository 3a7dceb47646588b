"""Phantoms of CAMUS: speckled sectors with a ventricle whose volume is known analytically.

For trying everything without patient data. The cavity is a truncated ellipsoid with the half-axes
a (long), b2 and b4 (across, in the 2- and the 4-chamber view), apex up, cut at h below its widest
place. Its volume is

    V = pi b2 b4 ((a + h) - (a^3 + h^3) / (3 a^2))

and cross sections are ellipses, so Simpson's biplane method is exact but for the height of disks
and pixels. Written in either of the challenge's layouts, see `layouts`.
"""

import dataclasses
import json
import math
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
from crossdim_jax.challenges.camus.layouts import VIEWS
from crossdim_jax.errors import check_name
from crossdim_jax.imaging import metaimage
from crossdim_jax.imaging.nifti import Geometry
from crossdim_jax.storage.files import write_text, writing

LAYOUTS = ("nifti", "mhd")
QUALITIES = ("Good", "Medium", "Poor")  # by turns
DEPTH_MM = 150.0
HALF_ANGLE = math.radians(38)
_RECORD = "camus_phantoms.json"
_VERSION = 1  # raise it when the images change
_BACKWARDS_EVERY = 4  # the films of patients 3, 7, ... run from ES to ED
_RADIAL_MM, _RAYS = 0.4, 192  # the grid of the scanner: range and angle
# Mean amplitude of what sends echoes; blood depends on the quality.
_TISSUE, _MYOCARDIUM, _PERICARDIUM, _VALVE = 0.18, 0.45, 0.95, 0.60
_BLOOD = {"Good": 0.04, "Medium": 0.07, "Poor": 0.11}
_DROPOUT = {"Good": 0.15, "Medium": 0.35, "Poor": 0.55}  # of the gain, behind a rib


@dataclasses.dataclass(frozen=True)
class Heart:
    """Ventricle at one time and what surrounds it; lengths in mm.

    Attributes:
      a, h: half of the ellipsoid's long axis, and how far below its widest place it is cut.
      b: half-axes across, {"2CH": b2, "4CH": b4}.
      wall: thickness of the myocardium.
      atrium: half-axes of the left atrium, along and across.
    """

    a: float
    h: float
    b: dict[str, float]
    wall: float
    atrium: tuple[float, float]

    @property
    def volume_ml(self) -> float:
        """Exact volume of the cavity."""
        a, h = self.a, self.h
        long = (a + h) - (a**3 + h**3) / (3 * a**2)
        return math.pi * self.b["2CH"] * self.b["4CH"] * long / 1000


@dataclasses.dataclass(frozen=True)
class Patient:
    """Phantom. hearts: from the end of diastole to the end of systole, one for each frame."""

    name: str
    hearts: tuple[Heart, ...]
    quality: str
    backwards: bool

    @property
    def edv_ml(self) -> float:
        """True volume at the end of diastole."""
        return self.hearts[0].volume_ml

    @property
    def esv_ml(self) -> float:
        """True volume at the end of systole."""
        return self.hearts[-1].volume_ml

    @property
    def ef_percent(self) -> float:
        """True ejection fraction."""
        return 100 * (1 - self.esv_ml / self.edv_ml)


def patient(index: int, *, seed: int = 0, n_frames: int = 8) -> Patient:
    """Makes the phantom of an index; depends on index, seed and n_frames only."""
    rng = np.random.default_rng([seed, index])
    a = rng.uniform(52, 60)
    h, wall = a * rng.uniform(0.40, 0.50), rng.uniform(8, 10.5)
    b2, b4 = rng.uniform(22, 27), rng.uniform(20, 25)
    atrium = (rng.uniform(18, 22), rng.uniform(18, 22))
    ef, shorter = rng.uniform(0.30, 0.65), rng.uniform(0.92, 0.97)
    narrower = math.sqrt((1 - ef) / shorter)
    hearts = []
    for time in np.linspace(0, 1, n_frames):
        s = 0.5 - 0.5 * math.cos(math.pi * time)
        long, across = 1 + s * (shorter - 1), 1 + s * (narrower - 1)
        lower = (a + h) * (1 - long)  # the apex stays, the base comes up and the atrium follows
        hearts.append(
            Heart(
                a * long,
                h * long,
                {"2CH": b2 * across, "4CH": b4 * across},
                wall * (1 + 0.3 * s),
                (atrium[0] + lower / 2, atrium[1] * (1 + 0.1 * s)),
            )
        )
    quality = QUALITIES[index % len(QUALITIES)]
    backwards = index % _BACKWARDS_EVERY == _BACKWARDS_EVERY - 1
    return Patient(f"patient{index + 1:04d}", tuple(hearts), quality, backwards)


def film(
    who: Patient, view: str, spacing_mm: Sequence[float], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images (frame, row, column) uint8 and labels of one view, from ED to ES.

    spacing_mm: (row, column). The transducer is in the middle of the upper edge.
    """
    rng = np.random.default_rng([seed, int(who.name[-4:]), VIEWS.index(view)])
    tilt = math.radians(rng.uniform(-9, 9))
    apex = (rng.uniform(20, 26), rng.uniform(-7, 7))
    rib = rng.uniform(-0.8, 0.8) * HALF_ANGLE
    texture = _noise((_samples(), _RAYS), (40, 18), rng)
    row, column = _pixels(spacing_mm)
    images, labels = [], []
    for heart in who.hearts:
        z, x = _along(row, column, apex, tilt, heart.a)
        angle = np.arctan2(column, row)
        label = np.where(_sector(row, column), _label(heart, view, z, x), 0)
        envelope = _scan(heart, view, who.quality, apex, tilt, texture, rib, rng)
        at = (
            np.hypot(row, column) / _RADIAL_MM,
            (angle + HALF_ANGLE) / (2 * HALF_ANGLE) * (_RAYS - 1),
        )
        image = ndimage.map_coordinates(envelope, at, order=1, mode="nearest")
        images.append(np.where(_sector(row, column), image, 0))
        labels.append(label)
    return np.rint(images).astype(np.uint8), np.asarray(labels, np.uint8)


def _samples() -> int:
    return round(DEPTH_MM / _RADIAL_MM) + 1


def _pixels(spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Depth and sideways position in mm of every pixel's centre."""
    width = 2 * DEPTH_MM * math.sin(HALF_ANGLE)
    rows, columns = round(DEPTH_MM / spacing_mm[0]), round(width / spacing_mm[1])
    depth = (np.arange(rows) + 0.5) * spacing_mm[0]
    side = (np.arange(columns) + 0.5 - columns / 2) * spacing_mm[1]
    return np.meshgrid(depth, side, indexing="ij")


def _sector(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return (np.hypot(row, column) <= DEPTH_MM) & (np.abs(np.arctan2(column, row)) <= HALF_ANGLE)


def _along(
    row: np.ndarray, column: np.ndarray, apex: tuple[float, float], tilt: float, a: float
) -> tuple[np.ndarray, np.ndarray]:
    """Position along the long axis, from the ellipsoid's widest place, and across."""
    down, side = row - apex[0], column - apex[1]
    along = math.cos(tilt) * down + math.sin(tilt) * side
    return along - a, math.cos(tilt) * side - math.sin(tilt) * down


def _label(heart: Heart, view: str, z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Label of each pixel: 0 background, 1 cavity, 2 myocardium, 3 left atrium."""
    above = z <= heart.h
    b, wall = heart.b[view], heart.wall
    label = np.zeros(z.shape, np.uint8)
    label[above & ((z / (heart.a + wall)) ** 2 + (x / (b + wall)) ** 2 <= 1)] = 2
    label[above & ((z / heart.a) ** 2 + (x / b) ** 2 <= 1)] = 1
    long, across = heart.atrium
    centre = heart.h + 0.7 * long
    label[~above & (((z - centre) / long) ** 2 + (x / across) ** 2 <= 1)] = 3
    return label


def _scan(
    heart: Heart,
    view: str,
    quality: str,
    apex: tuple[float, float],
    tilt: float,
    texture: np.ndarray,
    rib: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Grey values 0 to 255 on the scanner's grid (range, angle)."""
    radius, angle = np.meshgrid(
        np.arange(_samples()) * _RADIAL_MM,
        np.linspace(-HALF_ANGLE, HALF_ANGLE, _RAYS),
        indexing="ij",
    )
    z, x = _along(radius * np.cos(angle), radius * np.sin(angle), apex, tilt, heart.a)
    label = _label(heart, view, z, x)
    blood, b, wall = _BLOOD[quality], heart.b[view], heart.wall
    echo = _TISSUE * np.exp(0.35 * texture)
    rim = (z / (heart.a + wall)) ** 2 + (x / (b + wall)) ** 2
    echo[(rim > 1) & (rim < 1.12) & (z <= heart.h) & (x > 0)] = _PERICARDIUM
    if view == "4CH":  # the right heart, beyond the septum
        right = -(b + wall + 13)
        cavity = ((z - 0.15 * heart.a) / (0.65 * heart.a)) ** 2 + ((x - right) / 13) ** 2 <= 1
        atrium = ((z - heart.h - 18) / 16) ** 2 + ((x - right) / 15) ** 2 <= 1
        echo[cavity & (z <= heart.h) | atrium & (z > heart.h)] = blood
    echo[label == 2] = _MYOCARDIUM
    echo[(label == 1) | (label == 3)] = blood
    echo[(np.abs(z - heart.h) < 1.2) & (np.abs(x) < b)] = _VALVE * rng.uniform(0.5, 1)
    # Echoes of many scatterers add up as complex numbers: their amplitude is Rayleigh-distributed.
    shape = echo.shape
    speckle = np.abs(_noise(shape, (1.3, 1.1), rng) + 1j * _noise(shape, (1.3, 1.1), rng))
    amplitude = ndimage.gaussian_filter(echo, (1.0, 1.2)) * speckle
    amplitude *= np.exp(-0.008 * radius)  # what depth compensation leaves of the attenuation
    amplitude *= 1 - _DROPOUT[quality] * np.exp(-(((angle - rib) / 0.10) ** 2))
    amplitude += 0.12 * np.exp(-radius / 9) * (1 + 0.3 * speckle)  # reverberation near the skin
    amplitude += 0.012 * np.abs(rng.normal(size=shape))
    decibel = 20 * np.log10(np.maximum(amplitude, 1e-4))
    return np.clip((decibel + 38) / 40, 0, 1) * 255


def _noise(shape: tuple[int, int], sigma: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of sd 1, smoothed over sigma samples."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return field / field.std()


def ensure(
    root: str | os.PathLike,
    n: int,
    *,
    layout: str = "nifti",
    seed: int = 0,
    pixel_mm: float = 0.6,
    n_frames: int = 8,
) -> Path:
    """Ensures that `root` holds exactly these n phantoms; writes only what is absent.

    A record in the folder holds what was made and how, and every patient's true volumes. Phantoms
    made otherwise are replaced; a folder with anything else in it is left alone.

    Args:
      root: created if need be.
      n: number of patients.
      layout: "nifti", with the official lists and half sequences, or "mhd", where pixels are twice
        as wide as high, as in the old release, and sequences are called so.
      seed: 0 or more.
      pixel_mm: height of a pixel.
      n_frames: of the films, from the end of diastole to that of systole; at least 2.

    Returns:
      The root.

    Raises:
      ConfigError: a number is out of range.
      DataError: the folder holds other files and no record, or cannot be written to.
    """
    root = Path(root)
    record = _record(n, layout, seed, pixel_mm, n_frames)
    path = root / _RECORD
    phantoms.refuse_foreign(root, _RECORD)
    with writing(root, "phantoms"):
        if path.is_file() and _read(path) != record:
            for folder in ("database_nifti", "training", "database_split"):
                shutil.rmtree(root / folder, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        # First of all: an interrupted run leaves a folder that the next knows to be its own.
        write_text(path, json.dumps(record, indent=1))
        folder = root / ("database_nifti" if layout == "nifti" else "training")
        for index in range(n):
            who = patient(index, seed=seed, n_frames=n_frames)
            if not (folder / who.name).is_dir():
                _write(folder / who.name, who, layout, seed, pixel_mm)
        if layout == "nifti":
            _write_lists(root / "database_split", list(record["patients"]))
    return root


def _record(n: int, layout: str, seed: int, pixel_mm: float, n_frames: int) -> dict:
    check_name("phantoms.layout", layout, LAYOUTS)
    ranges.check("phantoms", n=n, seed=seed, n_frames=n_frames, pixel_mm=pixel_mm)
    patients = {}
    for index in range(n):
        who = patient(index, seed=seed, n_frames=n_frames)
        patients[who.name] = {
            "edv_ml": round(who.edv_ml, 4),
            "esv_ml": round(who.esv_ml, 4),
            "ef_percent": round(who.ef_percent, 4),
            "quality": who.quality,
            "backwards": who.backwards,
        }
    return {
        "version": _VERSION,
        "layout": layout,
        "seed": seed,
        "pixel_mm": pixel_mm,
        "n_frames": n_frames,
        "patients": patients,
    }


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _write(folder: Path, who: Patient, layout: str, seed: int, pixel_mm: float) -> None:
    """Writes all files of one patient, or none."""
    wide = 1 if layout == "nifti" else 2
    spacing_mm = (pixel_mm, wide * pixel_mm)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    name = "half_sequence" if layout == "nifti" else "sequence"
    save = _save_nifti if layout == "nifti" else _save_mhd
    try:
        for view in VIEWS:
            for images, ending in zip(
                film(who, view, spacing_mm, seed=seed), ("", "_gt"), strict=True
            ):
                order = images[::-1] if who.backwards else images
                for what, array in (("ED", images[:1]), ("ES", images[-1:]), (name, order)):
                    save(temporary / f"{who.name}_{view}_{what}{ending}", array, spacing_mm)
            (temporary / f"Info_{view}.cfg").write_text(_cfg(who, layout), encoding="utf-8")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cfg(who: Patient, layout: str) -> str:
    last = len(who.hearts)
    ed, es = (last, 1) if who.backwards else (1, last)
    lines = [f"ED: {ed}", f"ES: {es}", f"NbFrame: {last}", "Sex: F", "Age: 60"]
    lines.append(f"ImageQuality: {who.quality}")
    if layout == "nifti":
        return "\n".join([*lines, f"EF: {who.ef_percent:.4f}", "FrameRate: 50", ""])
    volumes = [
        f"LVedv: {who.edv_ml:.4f}",
        f"LVesv: {who.esv_ml:.4f}",
        f"LVef: {who.ef_percent:.4f}",
    ]
    return "\n".join([*lines, *volumes, ""])


def _save_nifti(stem: Path, array: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Writes (frame, row, column) as (width, height) or, a film, (width, height, frame)."""
    disk = array.transpose(2, 1, 0)
    image = nib.Nifti1Image(
        disk[..., 0] if len(array) == 1 else disk, np.diag([spacing_mm[1], spacing_mm[0], 1, 1])
    )
    image.header.set_xyzt_units("mm")
    nib.save(image, f"{stem}.nii.gz")


def _save_mhd(stem: Path, array: np.ndarray, spacing_mm: Sequence[float]) -> None:
    path = stem.with_name(f"{stem.name}.mhd")
    affine = np.diag([-spacing_mm[1], -spacing_mm[0], 1, 1])
    geometry = Geometry.from_affine(path, array.shape[::-1], affine, np.uint8, oriented=False)
    metaimage.write_mhd(path, array, geometry)


def _write_lists(folder: Path, patients: list[str]) -> None:
    """Writes the official lists: 8 of 10 patients train, 1 validates, 1 tests; one at least."""
    folder.mkdir(exist_ok=True)
    n = max(1, len(patients) // 10)
    parts = {"testing": patients[-n:], "validation": patients[-2 * n : -n]}
    parts["training"] = patients[: -2 * n]
    for name, members in parts.items():
        write_text(folder / f"subgroup_{name}.txt", "".join(f"{p}\n" for p in members))
