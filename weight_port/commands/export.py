"""`export`: a 2D weight file as the state dict of timm's network. Needs neither torch nor timm.

What it writes loads with `timm.create_model(NAME, in_chans=N).load_state_dict(..., strict=True)`
and computes what the ported encoder, and its head, compute.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.storage import files
from crossdim_jax.text import say
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.paths import is_head
from crossdim_jax.weights.recipe import Recipe, target_shapes
from crossdim_jax.weights.record import required
from weight_port import families, ours
from weight_port.convert import check_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("file", metavar="FILE", help="2D weights that `port` wrote, with the classifier's head")
    add("--out", metavar="PATH", help="the file to write (default: FILE with -timm in its name)")
    add("--overwrite", action="store_true", help="replace an existing file")


def main(args: argparse.Namespace) -> int:
    """Reads, renames, writes, and prints how timm loads the result."""
    path = Path(args.file)
    out = Path(args.out) if args.out else path.with_name(f"{path.stem}-timm.safetensors")
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: expected a name that ends with .safetensors; choose --out.")
    if out.exists() and not args.overwrite:
        raise WeightsError(f"{out} exists; replace it with --overwrite, or choose --out=PATH.")
    weights = ours.read_2d(path, "export")
    record = weights.metadata
    required(record, ("id", "architecture", "in_channels"), weights.name)
    tensors = state_dict(weights)
    write(out, tensors, str(record["id"]), str(record.get("licence")))
    model = str(record["id"]).partition(".")[0]
    channels = record["in_channels"]
    classes = tensors[f"{families.of(record['architecture']).CLASSIFIER}.bias"].shape[0]
    say(f"file     {out}\ntensors  {len(tensors)}")
    print(  # with names as Python writes them
        f"load     timm.create_model({model!r}, in_chans={channels}, num_classes={classes})"
        f".load_state_dict(safetensors.torch.load_file({str(out)!r}))"
    )
    return 0


def state_dict(weights: Weights) -> dict[str, np.ndarray]:
    """timm's complete state dict, by its names.

    Raises:
      WeightsError: the file lacks tensors that timm's network has: its head was left out, or its
        norm keeps no running statistics; or it holds statistics that describe nothing.
    """
    record = weights.metadata
    if str(record.get("statistics")).startswith("stale"):
        raise WeightsError(
            f"{weights.name}: its running statistics are stale; measure them first: python -m "
            f"weight_port reestimate {weights.name} --volumes PATTERN"
        )
    head = sorted(filter(is_head, weights.arrays))
    family = families.of(record["architecture"])
    if f"{family.CLASSIFIER}.bias" not in map(family.torch_name, head):
        raise WeightsError(
            f"{weights.name}: holds no classification head, which timm's network has; port the "
            "weights again without --no-head (it is kept in 2D)."
        )
    wanted = _own_norm(record)
    missing = sorted(
        path for path in target_shapes(record["architecture"], wanted) if path not in weights.arrays
    )
    if missing:
        raise WeightsError(
            f"{weights.name}: with norm {record.get('norm')!r} it lacks {len(missing)} tensors "
            f"that timm's network has, such as {missing[0]}; port the 2D weights again with "
            f"--norm={wanted.norm}."
        )
    check_shapes(weights, record["architecture"], wanted)
    tensors = ours.torch_arrays(weights, record["architecture"])
    # timm's BatchNorm also counts its steps; nothing reads the number.
    counters = [name for name in tensors if name.endswith(".running_mean")]
    zero = np.zeros((), np.int64)
    tensors |= {name.replace("running_mean", "num_batches_tracked"): zero for name in counters}
    return dict(sorted(tensors.items()))


def _own_norm(record: Mapping[str, Any]) -> Recipe:
    """The recipe of the network as timm has it."""
    return Recipe(
        ndim=2,
        in_channels=record["in_channels"],
        norm=encoders.norm(record["architecture"]),
        inflate=None,
        stem="gray",
    )


def write(out: Path, tensors: dict[str, np.ndarray], name: str, licence: str) -> None:
    """Writes a safetensors file, all or nothing."""
    content = save(
        {key: np.ascontiguousarray(value).reshape(value.shape) for key, value in tensors.items()},
        {"format": "pt", "from": f"crossdim_jax: {name}", "licence": licence},
    )
    with files.writing(out, kind=WeightsError):
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(out, content)
