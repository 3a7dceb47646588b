"""`port`: a 2D classifier's weights into the weights of a 2D or 3D encoder."""

import argparse

from crossdim_jax.models import encoders
from crossdim_jax.models.family import FIXED
from weight_port import plan, recognise, source
from weight_port.commands import recipe_flags
from weight_port.commands.making import make


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("name", nargs="?", help="a timm name, such as tf_efficientnet_b0.ns_jft_in1k; see `list`")
    add("--config", metavar="FILE", help="port exactly what this experiment will load")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--checkpoint",
        metavar="FILE",
        help=".safetensors, .pth, .pt, .bin, .ckpt, .h5 or .keras; needs no network",
    )
    origin.add_argument(
        "--random", action="store_true", help="random weights of that architecture, no network"
    )
    add("--ndim", type=int, choices=(2, 3), help="spatial rank of the encoder (default: 2)")
    recipe_flags.add_recipe(parser)
    add(
        "--no-head",
        dest="head",
        action="store_false",
        help="leave the classifier's head out of a 2D file; it could not be exported",
    )
    _add_checkpoint(parser)
    add("--license", "--licence", dest="licence", help="of the checkpoint's weights, recorded")
    recipe_flags.add_writing(parser)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the flags on what a checkpoint holds, all of which is found out if it is not said."""
    add = parser.add_argument
    add(
        "--scheme",
        metavar="NAME",
        help=f"whose names the checkpoint's tensors have: {', '.join(recognise.all_names())} "
        "(default: recognised)",
    )
    add("--prefix", metavar="TEXT", help="what their names begin with (default: found)")
    add("--ema", action="store_true", help="take the moving averages that the checkpoint holds")
    add(
        "--padding",
        choices=("same", "symmetric"),
        help="of the network that the weights were trained in (default: that of the scheme); "
        "torchvision's B5 to B7 and V2-L are TensorFlow's, trained with 'same'",
    )


def main(args: argparse.Namespace) -> int:
    """Plans, reads, converts, checks, writes, certifies and tells."""
    usage = args.parser.error
    if (args.name is None) == (args.config is None):
        usage("give either a timm name or --config=FILE")
    recipe_flags.refuse_with_config(args)
    if args.licence and not args.checkpoint:
        usage("--license goes with --checkpoint; otherwise it is known")
    reading = {name: getattr(args, name) for name in ("scheme", "prefix", "ema", "padding")}
    for name, value in reading.items():
        if value and not args.checkpoint:
            usage(f"--{name} goes with --checkpoint")
    if args.config:
        todo = plan.of_config(
            args.config,
            args.overrides,
            out=args.out,
            seed=args.seed or 0,
            random=args.random,
            head=args.head,
        )
    else:
        own = encoders.norm(source.parse_name(args.name).architecture)
        ndim = args.ndim or 2
        recipe = recipe_flags.recipe(
            args, ndim=ndim, **({"norm": own} if ndim == 2 or own in FIXED else {})
        )
        todo = plan.by_hand(args.name, recipe, args.out or "weights", random=args.random)
    if not args.overwrite:
        todo.refuse_existing()  # before anything is downloaded
    todo.check_recipe()
    if args.checkpoint:
        licence = args.licence or "unknown"
        origin = source.from_file(args.checkpoint, todo.name, licence=licence, **reading)
    elif args.random:
        origin = source.random(todo.name, seed=todo.recipe.seed)
    else:
        origin = source.from_package(todo.name) or source.from_timm(todo.name)
    make(todo, origin, certificate=args.certificate)
    return 0
