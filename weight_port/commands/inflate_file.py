"""`inflate`: 3D weights of a 2D weight file, with neither torch nor timm."""

import argparse

from crossdim_jax.weights.from_2d import check_stem
from crossdim_jax.weights.record import required
from weight_port import ours, plan
from weight_port.commands import recipe_flags
from weight_port.commands.making import make


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("file", metavar="FILE", help="2D weights that `python -m weight_port` wrote")
    add("--config", metavar="CONFIG", help="make exactly what this experiment will load")
    recipe_flags.add_recipe(parser)
    recipe_flags.add_writing(parser)


def main(args: argparse.Namespace) -> int:
    """Reads, inflates, checks, writes, certifies and tells."""
    recipe_flags.refuse_with_config(args)
    weights = ours.read_2d(args.file, "inflation")
    origin, record = ours.as_source(weights), weights.metadata
    required(record, ("source", "stem", "norm", "seed"), weights.name)
    if args.config:
        todo = plan.of_config(
            args.config, args.overrides, out=args.out, seed=args.seed or record.get("seed") or 0
        )
    else:
        # A stem that was adapted already stays as it is, unless another is asked for.
        kept = {field: record[field] for field in ("in_channels", "stem", "seed")}
        kept |= {} if record["norm"] in ("batch", "frozen") else {"norm": record["norm"]}
        recipe = recipe_flags.recipe(args, ndim=3, **kept)
        todo = plan.by_hand(
            record["id"], recipe, args.out or "weights", random=record["source"] == "random"
        )
    check_stem(weights, todo.recipe)
    if not args.overwrite:
        todo.refuse_existing()
    todo.check_recipe()
    make(todo, origin, certificate=args.certificate)
    return 0
