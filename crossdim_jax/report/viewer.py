"""Viewer page of a case: image, truth, prediction and their disagreement, scrolled in a browser.

One HTML file that asks nothing of a server or a network: it holds the voxels as NIfTI files, and
NiiVue (`niivue.js`, BSD-2-Clause, see `niivue.LICENSE`), which draws them with WebGL 2.
"""

import base64
import dataclasses
import gzip
import html
import importlib.resources
import json
import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.colors import to_rgba

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid
from crossdim_jax.imaging.case import Case, CaseFiles
from crossdim_jax.report import figures
from crossdim_jax.storage.files import write_text, writing
from crossdim_jax.text import shown

FOLDER = "viewer"
# Voxels of one channel that a browser draws without delay: some 340^3.
MAX_VOXELS = 40_000_000
MARGIN_MM = 20.0  # around the labels, where a case is cropped to them
# What the page may do: nothing but run its own text, and draw from memory.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; worker-src blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data: blob:; connect-src data: blob:"
)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Part of a volume that a page holds: from `start`, every `step`th voxel, on disk's axes.

    Attributes:
      start, stop: voxel indices (i, j, k), half open.
      step: 1 for all voxels.
      note: what is left out, as a sentence; "" if nothing is.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    step: int = 1
    note: str = ""

    def of(self, array: np.ndarray) -> np.ndarray:
        """Part of an array (i, j, k)."""
        return array[
            tuple(slice(a, b, self.step) for a, b in zip(self.start, self.stop, strict=True))
        ]

    def affine(self, affine: np.ndarray) -> np.ndarray:
        """Affine of the part, from that of the whole."""
        part = affine.copy()
        part[:3, 3] = affine[:3, :3] @ self.start + affine[:3, 3]
        part[:3, :3] *= self.step
        return part


def path(folder: Path, case_id: str) -> Path:
    """Path of a case's page, beside the folder of its prediction."""
    return folder / FOLDER / f"{case_id}.html"


def choose_cut(
    shape: Sequence[int], labelled: np.ndarray, spacing_mm: Sequence[float], most: int = MAX_VOXELS
) -> Cut:
    """Part of a volume that a browser can draw.

    All of it if it has at most `most` voxels; else what lies within 20 mm of a label; else of that
    every second voxel along each axis, or every third, and so on.

    Args:
      shape: (i, j, k).
      labelled: (i, j, k) bool, True where truth or prediction is foreground.
      spacing_mm: (i, j, k).
    """
    whole = Cut((0, 0, 0), tuple(map(int, shape)))
    if math.prod(shape) <= most:
        return whole
    start, stop, notes = list(whole.start), list(whole.stop), []
    if labelled.any():
        for axis in range(3):
            inside = labelled.any(axis=tuple(i for i in range(3) if i != axis)).nonzero()[0]
            margin = math.ceil(MARGIN_MM / spacing_mm[axis])
            start[axis] = max(int(inside[0]) - margin, 0)
            stop[axis] = min(int(inside[-1]) + 1 + margin, shape[axis])
        size = " x ".join(str(b - a) for a, b in zip(start, stop, strict=True))
        notes.append(
            f"cropped to {size} of {' x '.join(map(str, shape))} voxels, the labels and "
            f"{MARGIN_MM:.0f} mm around them"
        )
    step = 1
    while math.prod(-(-(b - a) // step) for a, b in zip(start, stop, strict=True)) > most:
        step += 1
    if step > 1:
        notes.append(f"one voxel in {step} along each axis")
    return Cut(tuple(start), tuple(stop), step, "; ".join(notes))


def write(
    page: Path,
    challenge: Challenge,
    files: CaseFiles,
    prediction: Path | None,
    *,
    scores: str = "",
    most: int = MAX_VOXELS,
) -> Path:
    """Writes the page of a case; returns its path.

    Args:
      page: see `path`.
      challenge: that reads the case.
      files: of the case; its label is drawn if it has one.
      prediction: file as `Challenge.read_prediction` reads it; None draws none.
      scores: a line for the head of the page.
      most: voxels of a channel, see `choose_cut`.

    Raises:
      DataError: a file cannot be read, the prediction is not on the image's grid, or the page
        cannot be written.
    """
    case = challenge.load(files)
    labels = {} if case.label is None else {"Truth": case.label}
    if prediction is not None:
        labels["Prediction"], geometry = challenge.read_prediction(prediction)
        if why := grid.difference(case.geometry, geometry, challenge.grid_tolerance_mm):
            raise DataError(f"{prediction}: {why}; predict the case again")
    content = _content(challenge, case, labels, most)
    with writing(page, "the viewer page"):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, _document(f"{challenge.name}: {shown(files.id)}", scores, content))
    return page


def _content(
    challenge: Challenge, case: Case, labels: dict[str, np.ndarray], most: int
) -> dict[str, object]:
    """JSON object for the page's script: volumes as base64 of gzipped NIfTI, names, colours."""
    layers = {name: challenge.layers(label) for name, label in labels.items()}
    names = list(dict.fromkeys(name for found in layers.values() for name in found))
    colours = {name: c for found in layers.values() for name, (_, c) in found.items()}
    flat = {what: _flatten(found, names, case) for what, found in layers.items()}
    labelled = np.zeros(case.image.shape[:3], bool)
    for label in flat.values():
        labelled |= label > 0
    geometry = case.geometry
    disk = geometry.from_lps
    affine = np.asarray(geometry.affine)
    cut = choose_cut(geometry.shape, disk(labelled), nib.affines.voxel_sizes(affine), most)

    def volume(array: np.ndarray) -> str:
        image = nib.Nifti1Image(cut.of(disk(array)), cut.affine(affine))
        return base64.b64encode(gzip.compress(image.to_bytes(), 6)).decode("ascii")

    overlays = [{"name": what, "data": volume(label)} for what, label in flat.items()]
    if len(flat) == 2:
        differs = flat["Truth"] != flat["Prediction"]
        overlays.append({"name": "Disagreement", "data": volume(differs.astype(np.uint8))})
    channels = []
    for name, channel in zip(challenge.modalities, np.moveaxis(case.image, -1, 0), strict=True):
        low, high = figures.window(channel)
        data = volume(_smallest(channel))
        channels.append({"name": name, "data": data, "low": low, "high": high})
    return {
        "channels": channels,
        "overlays": overlays,
        "layers": [
            {"name": n, "colour": [round(255 * v) for v in to_rgba(colours[n])[:3]]} for n in names
        ],
        "toVoxel": np.linalg.inv(affine)[:3].tolist(),
        "centre": nib.affines.apply_affine(affine, _centre(disk(labelled))).tolist(),
        "note": cut.note,
        "oriented": geometry.oriented,
    }


def _centre(labelled: np.ndarray) -> np.ndarray:
    """Labelled voxel (i, j, k) nearest to the middle of all of them; that of the grid without."""
    voxels = np.argwhere(labelled)
    if not len(voxels):
        return np.array(labelled.shape) // 2
    return voxels[np.square(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]


def _flatten(layers: figures.Layers, names: Sequence[str], case: Case) -> np.ndarray:
    """Volume (z, y, x) of the uppermost layer's place in `names`, counted from 1; 0 for none."""
    dtype = np.uint8 if len(names) < 256 else np.int16
    out = np.zeros(case.image.shape[:3], dtype)
    for name, (mask, _) in layers.items():
        out[mask] = names.index(name) + 1
    return out


def _rgb(colour: str) -> list[int]:
    return [round(255 * value) for value in to_rgba(colour)[:3]]


def _smallest(channel: np.ndarray) -> np.ndarray:
    """Channel in the smallest type of NIfTI that holds its values exactly."""
    low, high = channel.min(), channel.max()
    for dtype in (np.uint8, np.int16):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max and np.array_equal(channel, np.rint(channel)):
            return channel.astype(dtype)
    return channel


def _document(title: str, scores: str, content: dict[str, object]) -> str:
    here = importlib.resources.files(__package__)
    style, script, library = (
        here.joinpath(name).read_text(encoding="utf-8")
        for name in ("viewer.css", "viewer.js", "niivue.js")
    )
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1><p>{html.escape(scores)}</p></header>\n"
        '<main><aside id="controls"></aside><section><canvas id="canvas"></canvas>\n'
        '<p id="place" role="status"></p></section></main>\n'
        "<footer>Written by crossdim_jax; drawn by NiiVue. Not for clinical use.</footer>\n"
        f'<script type="application/json" id="case">{data}</script>\n'
        f"<script>{library}</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )
