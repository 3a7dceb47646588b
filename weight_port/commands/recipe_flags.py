"""The flags of a recipe, shared by the commands that make weight files."""

import argparse
from collections.abc import Callable

from crossdim_jax import ranges
from crossdim_jax.errors import WeightsError
from crossdim_jax.models.layers import NORMS
from crossdim_jax.weights import channels, inflate, norms
from crossdim_jax.weights.recipe import Recipe

# What a config says itself, so that by hand it would be said twice.
BY_HAND = (
    *("ndim", "inflate", "inflate_at", "depth_kernels", "factorised"),
    *("in_channels", "stem", "norm", "statistics"),
)


def whole(interval: str) -> Callable[[str], int]:
    """The `type` of a flag: a whole number in an interval, as in `ranges.Number`."""
    row = ranges.whole(interval)

    def number(text: str) -> int:
        value = int(text)
        if not row.holds(value):
            raise argparse.ArgumentTypeError(f"{text}: expected {row.expected}")
        return value

    return number


def add_seed(parser: argparse.ArgumentParser, what: str, default: int | None) -> None:
    """Adds the flag of a seed of `what`."""
    add, numbers = parser.add_argument, whole(f"[0, {ranges.UINT32}]")
    add("--seed", type=numbers, default=default, metavar="N", help=f"of {what} (default: 0)")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a `Recipe`; those that are not given are None."""
    add = parser.add_argument
    add("--inflate", metavar="MODE", help=f"{', '.join(inflate.INFLATE)} (3D; default: repeat)")
    add(
        "--inflate-at",
        metavar="PATTERN=MODE",
        action="append",
        help="another mode for the kernels whose path the regular expression matches, such as "
        "'blocks_[56]_.*=center'; may be repeated, the last one counts",
    )
    add(
        "--depth-kernels",
        metavar="N[,N...]",
        help="taps along depth: one number, or one per stage, the stem first (default: the size "
        "in the plane)",
    )
    add(
        "--factorised",
        action="store_true",
        default=None,
        help="keep depthwise kernels as a plane and a depth filter",
    )
    add(
        "--in-channels",
        type=whole("[1, 65536]"),
        metavar="N",
        help="input channels of the stem (default: 3)",
    )
    add("--stem", metavar="POLICY", help=f"{', '.join(channels.POLICIES)} (default: tile)")
    add(
        "--norm",
        metavar="NORM",
        help=f"{', '.join(NORMS)} (default: the network's own; in 3D: instance)",
    )
    add(
        "--statistics",
        metavar="HOW",
        help=f"{' or '.join(norms.STATISTICS)}, of norms with running statistics (default: carry)",
    )
    add_seed(parser, "whatever is drawn at random", None)


def add_writing(parser: argparse.ArgumentParser, *, default: str = "weights/") -> None:
    """Adds where to and how a file is written; `default` is said of where to."""
    add = parser.add_argument
    add("--out", metavar="PATH", help=f"a folder or a .safetensors file (default: {default})")
    add("--overwrite", action="store_true", help="replace an existing file")
    add(
        "--no-certificate",
        dest="certificate",
        action="store_false",
        help="do not run the network against its source once the file is written",
    )


def refuse_with_config(args: argparse.Namespace) -> None:
    """Ends with a usage error if flags say by hand what a config says."""
    if args.config is None:
        if args.overrides:
            args.parser.error(f"{args.overrides[0]}: overrides need --config=FILE")
        return
    for name in BY_HAND:
        if getattr(args, name, None) is not None:
            args.parser.error(
                f"--{name.replace('_', '-')}: the config says this; change it there, or override a "
                "field with --config.FIELD=VALUE"
            )


def recipe(args: argparse.Namespace, *, ndim: int, **defaults) -> Recipe:
    """The recipe that the flags say.

    Args:
      args: the flags.
      ndim: spatial rank of the weights.
      **defaults: of flags that were not given, in place of the general ones.

    Raises:
      WeightsError: the flags do not go together.
    """
    general = {
        "in_channels": channels.SOURCE_CHANNELS,
        "norm": "batch" if ndim == 2 else "instance",
        "inflate": None if ndim == 2 else "repeat",
        "stem": "tile",
        "seed": 0,
        "factorised": False,
        "inflate_at": (),
        "statistics": "carry",
    }
    given = {name: getattr(args, name) for name in general if getattr(args, name) is not None}
    values = general | defaults | given
    values["inflate_at"] = tuple(values["inflate_at"])
    return Recipe(
        ndim=ndim,
        depth_kernels=depth_kernels(args.depth_kernels),
        head=getattr(args, "head", True),
        **values,
    )


def depth_kernels(text: str | None) -> int | tuple[int, ...] | None:
    """ "3" -> 3, "1,3,3" -> (1, 3, 3), None -> None; anything else is a WeightsError."""
    if text is None:
        return None
    try:
        taps = tuple(int(part) for part in text.split(","))
    except ValueError:
        taps = (0,)
    if not all(map(ranges.RANGES["model.depth_kernels"].item.holds, taps)):
        raise WeightsError(
            f"--depth-kernels={text}: expected a number of taps, 1 to 99, such as 3, or one per "
            "stage separated by commas, such as 1,3,3,3,3,3,3,3 with the stem first."
        )
    return taps[0] if len(taps) == 1 else taps
