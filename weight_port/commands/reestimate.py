"""`reestimate`: a weight file's BatchNorm statistics, measured anew on volumes."""

import argparse
import glob
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.data.pipeline import crop, crop_start
from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.imaging import nifti
from crossdim_jax.imaging.preprocess import crop_and_zscore
from crossdim_jax.models import encoders
from crossdim_jax.run.config_gate import MOST_VOXELS
from crossdim_jax.runtime import sharding
from crossdim_jax.text import say
from crossdim_jax.training import batch_stats
from crossdim_jax.weights import norms
from crossdim_jax.weights.file import Weights, load_weights, save_weights
from crossdim_jax.weights.paths import ENCODER, flatten, unflatten
from crossdim_jax.weights.record import required
from weight_port import forward, records
from weight_port.certificate import recipe_of
from weight_port.commands import recipe_flags
from weight_port.convert import check_shapes

PREPARATION = "cropped to the brain, each channel z-scored over its voxels inside"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("file", metavar="FILE", help="2D or 3D weights with norm batch or frozen")
    add(
        "--volumes",
        nargs="+",
        required=True,
        metavar="PATTERN",
        help="NIfTI files, in quotes: of one channel, with one pattern for each input channel, or "
        "with the channels on a fourth axis",
    )
    add("--patch", default="64", metavar="N[,N,N]", help="voxels (z,y,x), or (y,x) (default: 64)")
    count = recipe_flags.whole("[1, 100000]")
    add("--patches", type=count, default=16, metavar="N", help="how many to measure (default: 16)")
    add("--batch", type=count, default=4, metavar="N", help="patches at a time (default: 4)")
    recipe_flags.add_seed(parser, "the patches' places", 0)
    recipe_flags.add_writing(parser, default="FILE with -reestimated")


def main(args: argparse.Namespace) -> int:
    """Reads the file and the volumes, measures, writes, certifies and tells."""
    path = Path(args.file)
    out = _out(path, args.out)
    if out.exists() and not args.overwrite:
        raise WeightsError(f"{out} exists; replace it with --overwrite, or choose --out=PATH.")
    weights = load_weights(path)
    record = weights.metadata
    if record.get("norm") not in norms.KEEPING:
        raise WeightsError(
            f"{path}: its norm is {record.get('norm')!r}, which keeps no running statistics; there "
            f"is nothing to measure. Only {' and '.join(norms.KEEPING)} keep them."
        )
    needed = ("architecture", "padding", "eps", "ndim", "in_channels")
    required(record, needed, weights.name)
    check_shapes(weights, record["architecture"], recipe_of(weights))
    patch = _patch(args.patch, record["ndim"])
    cases = find_cases(args.volumes, record["in_channels"])
    batches = patches_of(cases, patch, record["in_channels"], batch=args.batch, seed=args.seed)
    arrays, used = measure(weights, batches, patches=args.patches, seed=args.seed)
    fresh = [path for path in record.get("fresh") or () if not path.startswith("batch_stats/")]
    metadata = {key: value for key, value in record.items() if key != "certificate"} | {
        "statistics": f"reestimated ({used} patches)",
        "reestimated_on": {
            "files": [str(Path(file).name) for case in cases for file in case],
            "patch": list(patch),
            "seed": args.seed,
            "preparation": PREPARATION,
        },
        "fresh": fresh,
        **records.stamp(),
    }
    save_weights(out, arrays, metadata)
    if args.certificate:
        from weight_port.certificate import certify  # runs networks: only where it is asked for

        certify(out)
    say(f"measured {used} patches of {patch} from {len(cases)} cases\nfile     {out}")
    return 0


def _out(path: Path, out: str | None) -> Path:
    """The file to write: `out`, or in the folder `out`, or beside the file."""
    name = f"{path.stem.replace('-stale', '')}-reestimated.safetensors"
    found = Path(out) if out else path.with_name(name)
    if found.suffix != ".safetensors":
        found /= name
    if any(folder.exists() and not folder.is_dir() for folder in found.parents):
        raise WeightsError(f"--out={out}: {found.parent} is not a folder; choose another.")
    if found.is_dir():
        raise WeightsError(f"--out={out}: is a folder; choose a name that is free.")
    return found


def measure(
    weights: Weights, batches: Iterator[np.ndarray], *, patches: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], int]:
    """The file's tensors with new running statistics, and the number of patches used."""
    record = weights.metadata
    # Frozen norms measure nothing; the tensors are those of batch norms.
    settings = forward.attributes(record) | {"norm": "batch", "drop_path_rate": 0.0}
    encoder = encoders.build(record["architecture"], **settings)
    tree = unflatten(dict(weights.arrays))
    mesh = sharding.make_mesh(1)
    variables = {c: tree[c][ENCODER] for c in ("params", "batch_stats")}
    variables = jax.device_put(jax.tree.map(jnp.asarray, variables), sharding.replicated(mesh))
    stats, used = batch_stats.reestimate(
        encoder, variables, batches, mesh, patches=patches, seed=seed
    )
    found = flatten({"batch_stats": {ENCODER: stats}})
    return dict(weights.arrays) | {k: np.asarray(v, np.float32) for k, v in found.items()}, used


def _patch(text: str, ndim: int) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    sizes = sizes * ndim if len(sizes) == 1 else sizes
    if len(sizes) != ndim or min(sizes) < 32 or math.prod(sizes) > MOST_VOXELS:
        raise WeightsError(
            f"--patch={text}: expected {ndim} lengths of 32 or more, or one for all, such as 64; "
            f"at most {MOST_VOXELS} voxels."
        )
    return sizes


def find_cases(patterns: Sequence[str], channels: int) -> list[tuple[str, ...]]:
    """The files of each case: one, or one for each channel.

    Args:
      patterns: shell patterns; as many as channels, unless a file holds all channels.
      channels: input channels of the weights.

    Raises:
      DataError: a pattern matches nothing, or the channels' files are not equally many.
    """
    found = [sorted(glob.glob(pattern, recursive=True)) for pattern in patterns]
    for pattern, paths in zip(patterns, found, strict=True):
        if not paths:
            raise DataError(f"--volumes {pattern!r}: matches no file")
    if len(patterns) == 1 or channels == 1:  # or names that a shell has expanded already
        return [(path,) for path in sorted({path for paths in found for path in paths})]
    if len(patterns) != channels:
        raise DataError(
            f"--volumes: found {len(patterns)} patterns, expected {channels}, one for each input "
            "channel of the weights, or one if each file holds all channels. Put patterns in quotes"
        )
    if len(counts := {len(paths) for paths in found}) > 1:
        told = ", ".join(f"{p!r}: {len(f)}" for p, f in zip(patterns, found, strict=True))
        raise DataError(f"--volumes: the channels have {sorted(counts)} files ({told}); make equal")
    return list(zip(*found, strict=True))


def read_case(files: Sequence[str], channels: int) -> np.ndarray:
    """A case as (z, y, x, channels) float32, prepared as `PREPARATION` says.

    Raises:
      DataError: a file cannot be read, holds NaN, or its channels or shape do not fit.
    """
    volumes = []
    for file in files:
        ndim = 4 if len(files) == 1 and channels > 1 else 3
        volume, _ = nifti.read_nifti(file, ndim=ndim)
        volumes.append(volume[..., None] if volume.ndim == 3 else volume)
    if len(shapes := {volume.shape[:3] for volume in volumes}) > 1:
        raise DataError(f"{', '.join(files)}: shapes differ: {sorted(shapes)}")
    image = np.concatenate([volume.astype(np.float32) for volume in volumes], -1)
    if image.shape[-1] != channels:
        raise DataError(
            f"{files[0]}: holds {image.shape[-1]} channels, but the weights take {channels}"
        )
    if not np.isfinite(image).all():
        raise DataError(f"{files[0]}: holds NaN or infinite voxels; repair or leave it out")
    try:
        return crop_and_zscore(image)[0]
    except ValueError as error:
        raise DataError(f"{files[0]}: {error}") from error


def patches_of(
    cases: Sequence[Sequence[str]], patch: Sequence[int], channels: int, *, batch: int, seed: int
) -> Iterator[np.ndarray]:
    """Batches of random patches without end, `(batch, *patch, channels)`, the cases in turn.

    A 2D patch is of one axial slice, drawn among those that are not empty.
    """
    rng = np.random.default_rng(seed)
    flat = len(patch) == 2
    kept: dict[Sequence[str], np.ndarray] = {}  # a file is read once, while there are few
    count = 0
    while True:
        rows = []
        for _ in range(batch):
            files = cases[count % len(cases)]
            count += 1
            if files not in kept:
                kept |= {files: read_case(files, channels)}
                if len(kept) > 8:
                    kept.pop(next(iter(kept)))
            image = kept[files]
            if flat:
                occupied = np.flatnonzero(image.any(axis=(1, 2, 3)))
                image = image[rng.choice(occupied)][None]
            window = (1, *patch) if flat else tuple(patch)
            rows.append(crop(image, crop_start(image.shape[:3], window, rng), window))
        rows = np.stack(rows)
        yield rows[:, 0] if flat else rows
