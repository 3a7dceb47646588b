"""The command: `python -m weight_port`."""

import argparse
import datetime
import importlib.metadata
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import crossdim_jax
from crossdim_jax import params
from crossdim_jax.errors import CrossdimError
from crossdim_jax.models.layers import NORMS
from weight_port import channels, inflate, plan, source
from weight_port.convert import Converted, Recipe, convert

EXAMPLES = """examples:
  python -m weight_port --config=configs/brats_dxnet.py
      what that experiment will load; --config.weights.inflate=mean and other overrides work
  python -m weight_port tf_efficientnet_b0.ns_jft_in1k --ndim=3 --inflate=repeat \\
      --in-channels=16 --stem=tile --norm=instance --out=weights/
      the same by hand
  python -m weight_port tf_efficientnet_b0.ns_jft_in1k --checkpoint=model.safetensors
      from a file, without a network
"""
BY_HAND = ("ndim", "inflate", "in_channels", "stem", "norm")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = argparse.ArgumentParser(
        prog="python -m weight_port",
        description="Turns a 2D classifier's weights into the weights of a 2D or 3D encoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("name", nargs="?", help="a timm name, such as tf_efficientnet_b0.ns_jft_in1k")
    add("--config", metavar="FILE", help="port exactly what this experiment will load")
    origin = result.add_mutually_exclusive_group()
    origin.add_argument(
        "--checkpoint", metavar="FILE", help=".safetensors, .pth, .pt or .bin; no network needed"
    )
    origin.add_argument(
        "--random", action="store_true", help="random weights of that architecture, no network"
    )
    add("--ndim", type=int, choices=(2, 3), help="spatial rank of the encoder (default: 2)")
    add("--inflate", metavar="MODE", help=f"{', '.join(inflate.INFLATE)} (3D; default: repeat)")
    add("--in-channels", type=int, metavar="N", help="input channels of the stem (default: 3)")
    add("--stem", metavar="POLICY", help=f"{', '.join(channels.POLICIES)} (default: tile)")
    add("--norm", metavar="NORM", help=f"{', '.join(NORMS)} (default: batch; in 3D: instance)")
    add("--seed", type=int, default=0, help="of whatever is drawn at random (default: 0)")
    add("--out", metavar="PATH", help="a folder or a .safetensors file (default: weights/)")
    add("--license", "--licence", dest="licence", help="of the checkpoint's weights, recorded")
    add("--overwrite", action="store_true", help="replace an existing file")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; errors go to stderr without a traceback."""
    flags = parser()
    argv = sys.argv[1:] if argv is None else argv
    # Taken out first: argparse would read one with a space in it as the timm name.
    overrides = [a for a in argv if re.match(r"--config\.[\w.]+=", a)]
    args, strange = flags.parse_known_args([a for a in argv if a not in overrides])
    if strange:
        flags.error(f"unknown arguments: {' '.join(strange)} (overrides: --config.field=value)")
    if (args.name is None) == (args.config is None):
        flags.error("give either a timm name or --config=FILE")
    if overrides and args.config is None:
        flags.error(f"{overrides[0]}: overrides need --config=FILE")
    said = [name for name in BY_HAND if getattr(args, name) is not None]
    if args.config and said:
        flags.error(
            f"--{said[0].replace('_', '-')}: the config says this; change it there, or override "
            "a field with --config.FIELD=VALUE"
        )
    if args.licence and not args.checkpoint:
        flags.error("--license goes with --checkpoint; otherwise it is known")
    try:
        port(args, overrides)
    except CrossdimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def port(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Plans, reads, converts, checks, writes and tells."""
    if args.config:
        todo = plan.from_config(
            args.config, overrides, out=args.out, seed=args.seed, random=args.random
        )
    else:
        todo = plan.by_hand(args.name, _recipe(args), args.out or "weights", random=args.random)
    if not args.overwrite:
        todo.refuse_existing()  # before anything is downloaded
    if args.checkpoint:
        origin = source.from_file(args.checkpoint, todo.name, licence=args.licence or "unknown")
    elif args.random:
        origin = source.random(todo.name, seed=args.seed)
    else:
        origin = source.from_timm(todo.name)
    converted = convert(origin, todo.recipe)
    metadata = record(origin, todo.recipe, converted)
    todo.check(params.Weights(converted.arrays, metadata, todo.out))
    params.save_weights(todo.out, converted.arrays, metadata)
    print(summary(todo, metadata, converted))


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe said by hand, with its defaults."""
    ndim = args.ndim or 2
    return Recipe(
        ndim=ndim,
        in_channels=channels.SOURCE_CHANNELS if args.in_channels is None else args.in_channels,
        norm=args.norm or ("batch" if ndim == 2 else "instance"),
        inflate=args.inflate or (None if ndim == 2 else "repeat"),
        stem=args.stem or "tile",
        seed=args.seed,
    )


def record(origin: source.Source, recipe: Recipe, converted: Converted) -> dict[str, Any]:
    """The metadata of a weight file: all it takes to judge it, or to make it again."""
    return {
        **origin.origin,
        "architecture": origin.name.architecture,
        "padding": origin.name.padding,
        "eps": origin.name.eps,
        "ndim": recipe.ndim,
        "inflate": recipe.inflate,
        "in_channels": recipe.in_channels,
        "stem": recipe.stem,
        "norm": recipe.norm,
        "seed": recipe.seed,
        "tensors": len(converted.arrays),
        "values": sum(array.size for array in converted.arrays.values()),
        "unused": list(converted.unused),
        "fresh": list(converted.fresh),
        "versions": {"crossdim_jax": crossdim_jax.__version__, **_versions()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str | None]:
    found = {}
    for package in ("jax", "flax", "numpy", "torch", "timm"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def summary(todo: plan.Plan, metadata: dict[str, Any], converted: Converted) -> str:
    """What was done, for people; ends with the next command."""
    kinds = {
        "classification head": r"(conv_head|bn2|classifier)\..*",
        "BatchNorm counters": r".*num_batches_tracked",
        "running statistics": r".*running_(mean|var)",
    }
    groups: dict[str, int] = {}
    for name in converted.unused:
        kind = next((k for k, pattern in kinds.items() if re.fullmatch(pattern, name)), name)
        groups[kind] = groups.get(kind, 0) + 1
    unused = ", ".join(f"{kind} {n}" for kind, n in groups.items())
    learned = [a for path, a in converted.arrays.items() if path.startswith("params/")]
    said = {
        "file": todo.out,
        "source": todo.name,
        "inflate": todo.recipe.inflate,
        "stem": todo.recipe.stem,
    }
    by_hand = [f"--config.weights.{field}={value}" for field, value in said.items() if value]
    options = todo.config or shlex.join(["--config=CONFIG", *by_hand, plan.DATA_ROOT])
    lines = {
        "weights": params.describe(metadata),
        "sha256": metadata["sha256"] or "none",
        "tensors": f"{len(converted.used)} used of {len(converted.used) + len(converted.unused)}",
        "unused": unused or "none",
        "fresh": ", ".join(converted.fresh) or "none",
        "written": f"{len(converted.arrays)} tensors, "
        f"{int(np.sum([a.size for a in learned])):,} parameters",
        "file": str(todo.out),
        "next": f"python launch.py {options} --workdir=runs/NAME",
    }
    return "\n".join(f"{key:8} {value}" for key, value in lines.items())


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # only shapes are asked of it: leave the GPU alone
    sys.exit(main())
